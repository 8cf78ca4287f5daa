"""Fields of the bodies on rendering and drawing: a chat's template, the draw, where the answer ends, log-probabilities.

OpenAI's and vLLM's names and meanings. Submit checks their bounds.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, model_validator

from tokenrelay.gateway.http.problems import refuse
from tokenrelay.gateway.openai.bodies.coercion import Flag, Real, Whole, number
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


class TemplateFields(BaseModel):
    """How the chat template renders a conversation."""

    model_config = ConfigDict(strict=True, use_attribute_docstrings=True)

    continue_final_message: Flag | None = None
    """Extension: the answer continues the last message, which is the assistant's."""
    add_generation_prompt: Flag | None = None
    """Extension: false is allowed with continue_final_message alone, and true without it."""
    chat_template_kwargs: dict[str, Any] | None = None
    """Extension: variables of the model's chat template."""

    @model_validator(mode="after")
    def _check_generation_prompt(self) -> Self:
        continues = bool(self.continue_final_message)
        if self.add_generation_prompt is not None and self.add_generation_prompt is continues:
            why = "must be false or absent with" if continues else "isn't supported as false without"
            refuse("add_generation_prompt", f"{why} continue_final_message: true", "unsupported_parameter")
        return self

    @property
    def template_options(self) -> dict[str, Any]:
        """The request options that were given."""
        given = {name: getattr(self, name) for name in ("continue_final_message", "chat_template_kwargs")}
        return {name: value for name, value in given.items() if value}
