"""Fields of the bodies about the draw: how tokens are drawn, where the answer ends, a response's log-probabilities.

OpenAI's and vLLM's names and meanings. Submit checks their bounds.
"""

from __future__ import annotations

from typing import Annotated, Any, Final

from pydantic import BaseModel, BeforeValidator, ConfigDict

from tokenrelay.gateway.openai.bodies.coercion import Flag, Real, Whole, number
from tokenrelay.gateway.openai.bodies.contents import refuse
from tokenrelay.gateway.openai.bodies.no_op_values import equal, is_empty
from tokenrelay.shared.options import MODELS_OWN, VERSION_2

_IS_ZERO: Final = equal(0)
_LOGPROBS: Final = "message.output_text.logprobs"


def biases(value: Any) -> Any:
    """The biases of a logit_bias as numbers, without those that change nothing; None where none is left."""
    if isinstance(value, dict):
        value = {token_id: number(bias) for token_id, bias in value.items() if not _IS_ZERO(bias)}
    return None if is_empty(value) else value


def changes(name: str, value: Any) -> bool:
    """Whether a field of these asks for something: a model may have a default of its own for some."""
    return name in MODELS_OWN or value != VERSION_2.get(name)


class DrawFields(BaseModel):
    """Each is an option of ours by the same name."""

    model_config = ConfigDict(strict=True, use_attribute_docstrings=True)

    logit_bias: Annotated[dict[str, Any] | None, BeforeValidator(biases)] = None
    """Token ID → added to its logit, -100 to 100."""
    repetition_penalty: Real | None = None
    """Extension: above 1, tokens of the prompt and the answer so far are less likely."""
    frequency_penalty: Real | None = None
    """Subtracted from a token's logit for each time that the answer holds it, -2 to 2."""
    presence_penalty: Real | None = None
    """Subtracted from the logit of each token that the answer holds, -2 to 2."""
    bad_words: list[str] | None = None
    """Extension: texts that aren't generated."""
    min_tokens: Whole | None = None
    """Extension: minimum number of answer tokens."""
    min_p: Real | None = None
    """Extension: sample from tokens with at least this share of the likeliest one's probability."""
    stop_token_ids: list[Whole] | None = None
    """Extension: the answer ends before the first of these tokens."""
    include_stop_str_in_output: Flag | None = None
    """Extension: the answer includes the stop string, or token of stop_token_ids, that ended it."""


def _parts(value: Any) -> Any:
    """The parts of an `include`. Those of tools, images and reasoning are in no answer here."""
    if is_empty(value):
        return None
    if not isinstance(value, list):
        refuse("include", f'must be a list, such as ["{_LOGPROBS}"]')
    return value


class ResponseLogprobs(BaseModel):
    """How the Responses API asks for log-probabilities."""

    model_config = ConfigDict(strict=True, use_attribute_docstrings=True)

    include: Annotated[list[Any] | None, BeforeValidator(_parts)] = None
    """`message.output_text.logprobs`: return the log-probability of each token. Other parts are in no answer here."""
    top_logprobs: Whole | None = None
    """With that: return those of so many likeliest tokens at each place, too, 0 to 20."""

    def logprob_options(self) -> dict[str, Any]:
        """Our options. Raises Problem 400."""
        if _LOGPROBS in (self.include or ()):
            return {"logprobs": True, **({"top_logprobs": self.top_logprobs} if self.top_logprobs else {})}
        if self.top_logprobs:
            refuse("top_logprobs", f'needs include: ["{_LOGPROBS}"] beside it')
        return {}
