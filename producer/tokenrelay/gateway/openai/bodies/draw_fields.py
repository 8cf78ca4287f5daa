"""Fields of the bodies that change how tokens are drawn and where the answer ends, beside OpenAI's basic ones.

OpenAI's and vLLM's names and meanings. Submit checks their bounds.
"""

from __future__ import annotations

from typing import Annotated, Any, Final

from pydantic import BaseModel, BeforeValidator, ConfigDict

from tokenrelay.gateway.openai.bodies.coercion import Flag, Real, Whole, number
from tokenrelay.gateway.openai.bodies.no_op_values import equal, is_empty
from tokenrelay.shared.options import MODELS_OWN, VERSION_2

_IS_ZERO: Final = equal(0)


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
