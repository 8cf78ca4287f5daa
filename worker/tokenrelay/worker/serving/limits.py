"""Checks a request against its engine's capabilities. Owns the wording of the refusals."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, cast

from tokenrelay.shared.errors import RequestError
from tokenrelay.shared.options import VERSION_2
from tokenrelay.shared.request_fields import check_prompt_tokens
from tokenrelay.worker.engine.admission import Overflow, admit
from tokenrelay.worker.sampling import params as sampling

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from tokenrelay.shared.options import Submission
    from tokenrelay.worker.engine.contract import Capabilities

WORKERS_OWN: Final = frozenset(
    {
        "chat_template_kwargs",
        "continue_final_message",
        "echo",
        "include_stop_str_in_output",
        "parallel_tool_calls",
        "prompt_token_ids",
        "tool_choice",
        "top_logprobs",
    }
)
"""The options that need no support of an engine, or have it together with another: `top_logprobs` with `logprobs`."""
NEUTRAL: Final[Mapping[str, Any]] = {
    **{name: default for name, default in VERSION_2.items() if name not in WORKERS_OWN},
    **sampling.NEUTRAL,
    "ignore_eos": False,
}
"""The options that an engine must support, and the values at which they have no effect."""


def token_budget(prompt_tokens: int, emitted_tokens: int, options: Submission, capabilities: Capabilities) -> int:
    """The tokens that the answer may have, over all attempts. Raises RequestError `prompt_too_long`,
    `prompt_logprobs_too_large`, `unsupported_option` for an option that this engine doesn't support, or for token IDs
    beyond its vocabulary."""
    given = cast("Mapping[str, Any]", options)
    for name, neutral in NEUTRAL.items():
        if name not in capabilities.options and given.get(name, neutral) != neutral:
            raise RequestError(
                f"this model's engine doesn't support {name}: leave it out, or give {neutral!r}",
                field=name,
                limit=neutral,
                code="unsupported_option",
            )
    check_ids("logit_bias", map(int, given.get("logit_bias", ())), capabilities.vocabulary)
    check_ids("stop_token_ids", given.get("stop_token_ids", ()), capabilities.vocabulary)
    if (top := given.get("prompt_logprobs")) is not None:
        check_prompt_tokens(prompt_tokens, top)
    admitted = admit(prompt_tokens, emitted_tokens, options["max_new_tokens"], capabilities.context_tokens)
    if isinstance(admitted, Overflow):
        raise _too_long(admitted)
    return admitted


def check_ids(field: str, token_ids: Iterable[int], vocabulary: int) -> None:
    """Raises RequestError for an ID beyond the vocabulary, which only a worker knows."""
    for token_id in token_ids:
        if not 0 <= token_id < vocabulary:
            raise RequestError(
                f"{field}: {token_id} is no token of this model: its token IDs are 0 to {vocabulary - 1}",
                field=field,
                limit=vocabulary - 1,
            )


def _too_long(overflow: Overflow) -> RequestError:
    return RequestError(
        # Clients recognise an overflow by its words: "prompt is too long", or "this model's maximum context length is".
        f"the prompt is too long: this model's maximum context length is {overflow.context_tokens} tokens, "
        f"and the prompt has {overflow.prompt_tokens}; one at least must be left for the answer",
        field="prompt",
        limit=overflow.context_tokens - 1,
        code="prompt_too_long",
    )
