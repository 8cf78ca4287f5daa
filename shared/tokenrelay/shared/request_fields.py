"""The types of a request's fields: their bounds, and the checks that a bound alone can't express.

Knows neither which fields a request has nor their defaults: those are in `options`.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, JsonValue
from pydantic_core import PydanticCustomError
from typing_extensions import TypedDict

from tokenrelay.shared.wire import keys

MAX_STOP: Final = 16
MAX_SEED: Final = 2**63 - 1
MAX_TEMPERATURE: Final = 100.0
MAX_DEADLINE_S: Final = 7 * 86_400.0
MAX_TOP_K: Final = 2**31 - 1
MAX_TOKEN_ID: Final = 2**31 - 1
MIN_REPETITION_PENALTY: Final = 0.01
"""A smaller one makes infinities of scores."""
MAX_REPETITION_PENALTY: Final = 100.0
MAX_PENALTY: Final = 2.0
MAX_BIAS: Final = 100.0
MAX_BIASES: Final = 1024
MAX_BAD_WORDS: Final = 256
MAX_STOP_TOKEN_IDS: Final = 256
MAX_TOP_LOGPROBS: Final = 20
MAX_LOGPROBS: Final = 1_048_576
"""Of a stream: each token's own and its alternatives'."""
MAX_CHOICES: Final = 256
"""Requests under one base ID: prompts of one call, times the choices of each."""
MAX_N: Final = 16
"""Choices of one prompt."""
MAX_METADATA_BYTES: Final = 16_384
MAX_METADATA_DEPTH: Final = 190
"""Whoever reads the stored request gives up at 200 levels (pydantic's JSON parser)."""


def encodable(value: str) -> str:
    """The text. Raises ValueError where it can't be stored: it holds half of a surrogate pair."""
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"holds a lone surrogate at character {error.start}; text must be valid Unicode, such as UTF-8 decodes to"
        ) from None
    return value


def not_blank(value: str) -> str:
    """The text. Raises ValueError where nothing in it is visible."""
    if not value.strip():
        raise ValueError("is empty or blank; give at least one visible character")
    return value


def model_name(value: str) -> str:
    """The name. Raises PydanticCustomError where it can't name a queue."""
    if not keys.is_model_name(value):
        raise PydanticCustomError(
            "model_name",
            "must be a name such as 'weather' or 'owner/name': letters, digits, . _ - (no --), at most {le} characters",
            {"le": keys.MAX_MODEL_CHARS},
        )
    return value


def shallow(value: Any) -> Any:
    """The value. Raises PydanticCustomError where it nests too deeply. Checked level by level: Python's objects may
    hold themselves."""
    layer, levels = [value], 0
    while layer := [each for each in layer if isinstance(each, dict | list)]:
        levels += 1
        if levels > MAX_METADATA_DEPTH:
            raise PydanticCustomError("too_deep", "nests more than {le} levels", {"le": MAX_METADATA_DEPTH})
        inner = (child for each in layer for child in (each.values() if isinstance(each, dict) else each))
        layer = list({id(child): child for child in inner}.values())
    return value


def small_metadata(value: dict[str, JsonValue]) -> dict[str, JsonValue]:
    """The object. Raises PydanticCustomError where it's too large, and ValueError where it isn't JSON."""
    try:
        size = len(json.dumps(value, ensure_ascii=False, allow_nan=False).encode())
    except ValueError as error:
        raise ValueError(f"isn't valid JSON ({error}); lone surrogates, NaN and infinities can't be stored") from None
    if size > MAX_METADATA_BYTES:
        raise PydanticCustomError(
            "too_large", "is {size} bytes as JSON; at most {le} are allowed", {"size": size, "le": MAX_METADATA_BYTES}
        )
    return value


Text = Annotated[str, AfterValidator(encodable)]
Priority = Literal["high", "default", "low"]


class Message(TypedDict):
    """One message of a chat."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)  # type: ignore[misc]

    role: Literal["system", "developer", "user", "assistant"]
    content: Text


def _id_keys(value: Any) -> Any:
    """The biases by token ID in decimal, as JSON has it; callers in Python may give integers."""
    if not isinstance(value, dict):
        return value
    if len(value) > MAX_BIASES:
        raise PydanticCustomError(
            "too_many", "has {count} entries; at most {le} are allowed", {"count": len(value), "le": MAX_BIASES}
        )
    found: dict[str, Any] = {}
    for key, bias in value.items():
        token_id = _vocabulary_id(key)
        if token_id in found:
            raise PydanticCustomError("twice", "has the token ID {token_id} twice", {"token_id": token_id})
        found[token_id] = bias
    return found


def _vocabulary_id(key: object) -> str:
    digits = str(key) if isinstance(key, int) and not isinstance(key, bool) else key
    if not isinstance(digits, str) or not digits.isascii() or not digits.isdecimal() or len(digits) > 64:
        raise PydanticCustomError("token_id", "has the key {key}; keys are token IDs, such as 42", {"key": _short(key)})
    if int(digits) > MAX_TOKEN_ID:
        raise PydanticCustomError(
            "token_id", "has the key {key}; token IDs are at most {le}", {"key": _short(key), "le": MAX_TOKEN_ID}
        )
    return str(int(digits))


def _short(key: object) -> str:
    return ascii(key)[:60]


def _with_effect(value: dict[str, float]) -> dict[str, float]:
    """Without the biases of 0, which change nothing."""
    return {token_id: bias for token_id, bias in value.items() if bias != 0}


Temperature = Annotated[float, Field(ge=0, le=MAX_TEMPERATURE, allow_inf_nan=False)]
TopK = Annotated[int, Field(ge=0, le=MAX_TOP_K)]
TopP = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
MinP = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
RepetitionPenalty = Annotated[float, Field(ge=MIN_REPETITION_PENALTY, le=MAX_REPETITION_PENALTY, allow_inf_nan=False)]
Penalty = Annotated[float, Field(ge=-MAX_PENALTY, le=MAX_PENALTY, allow_inf_nan=False)]
TokenId = Annotated[int, Field(ge=0, le=MAX_TOKEN_ID)]
Bias = Annotated[float, Field(ge=-MAX_BIAS, le=MAX_BIAS, allow_inf_nan=False)]
LogitBias = Annotated[dict[str, Bias], BeforeValidator(_id_keys), AfterValidator(_with_effect)]
BadWord = Annotated[Text, Field(min_length=1, max_length=256), AfterValidator(not_blank)]
