"""Checks a request against its engine's capabilities. Owns the wording of the refusals."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, cast

from tokenrelay.shared.errors import RequestError
from tokenrelay.worker.engine.admission import Overflow, admit
from tokenrelay.worker.sampling import params as sampling

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tokenrelay.shared.options import Submission
    from tokenrelay.worker.engine.contract import Capabilities

NEUTRAL: Final[Mapping[str, Any]] = {**sampling.NEUTRAL, "ignore_eos": False}
"""The options that an engine must support, and the values at which they have no effect."""


def token_budget(prompt_tokens: int, emitted_tokens: int, options: Submission, capabilities: Capabilities) -> int:
    """The tokens that the answer may have, over all attempts. Raises RequestError `prompt_too_long`, or
    `unsupported_option` for an option that this engine doesn't support."""
    for name, neutral in NEUTRAL.items():
        if name not in capabilities.options and cast("Mapping[str, Any]", options)[name] != neutral:
            raise RequestError(
                f"this model's engine doesn't support {name}: leave it out, or give {neutral!r}",
                field=name,
                limit=neutral,
                code="unsupported_option",
            )
    admitted = admit(prompt_tokens, emitted_tokens, options["max_new_tokens"], capabilities.context_tokens)
    if isinstance(admitted, Overflow):
        raise _too_long(admitted)
    return admitted


def _too_long(overflow: Overflow) -> RequestError:
    return RequestError(
        # Clients recognise an overflow by its words: "prompt is too long", or "this model's maximum context length is".
        f"the prompt is too long: this model's maximum context length is {overflow.context_tokens} tokens, "
        f"and the prompt has {overflow.prompt_tokens}; one at least must be left for the answer",
        field="prompt",
        limit=overflow.context_tokens - 1,
        code="prompt_too_long",
    )
