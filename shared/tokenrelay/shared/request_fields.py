"""The types of a request's fields: their bounds, and the checks that a bound alone can't express.

Also the checks of several fields together. Knows neither which fields a request has nor their defaults: those are in
`options`.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from pydantic import AfterValidator, BeforeValidator, Field, JsonValue
from pydantic_core import PydanticCustomError

from tokenrelay.shared.errors import RequestError
from tokenrelay.shared.wire import keys

if TYPE_CHECKING:
    from collections.abc import Mapping

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
MAX_PROMPT_LOGPROBS: Final = 131_072
"""Of a prompt, likewise."""
MAX_PROMPT_LOGPROBS_BYTES: Final = 8_388_608
"""Of a prompt, as its hash keeps them."""
MAX_TEMPLATE_KWARGS_BYTES: Final = 16_384
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
    _check_bytes(_as_json(value), MAX_METADATA_BYTES)
    return value


def _as_json(value: dict[str, JsonValue], separators: tuple[str, str] | None = None) -> str:
    """The object's JSON text. Raises ValueError where it has none."""
    try:
        written = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=separators)
        written.encode()
    except ValueError as error:
        raise ValueError(f"isn't valid JSON ({error}); lone surrogates, NaN and infinities can't be stored") from None
    return written


def _check_bytes(written: str, limit: int) -> None:
    """Raises PydanticCustomError for a JSON text that is too large."""
    if (size := len(written.encode())) > limit:
        raise PydanticCustomError(
            "too_large", "is {size} bytes as JSON; at most {le} are allowed", {"size": size, "le": limit}
        )


Text = Annotated[str, AfterValidator(encodable)]
Priority = Literal["high", "default", "low"]


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

_TEMPLATES_OWN: Final = frozenset(
    {
        "add_generation_prompt",
        "chat_template",
        "continue_final_message",
        "conversation",
        "conversations",
        "documents",
        "max_length",
        "messages",
        "padding",
        "raise_exception",
        "return_assistant_tokens_mask",
        "return_dict",
        "return_tensors",
        "sanitize_control_tokens",
        "strftime_now",
        "tokenize",
        "tokenizer_kwargs",
        "tools",
        "truncation",
    }
)
"""Names that rendering sets itself, as are those of special tokens, which end in `_token` or `_tokens`."""


def _object_of(value: Any) -> Any:
    """The object that a JSON text says; other values unchanged. Raises ValueError for a text that isn't JSON."""
    if not isinstance(value, str):
        return shallow(value)
    if len(value) > MAX_TEMPLATE_KWARGS_BYTES:
        _check_bytes(value, MAX_TEMPLATE_KWARGS_BYTES)
    try:
        return shallow(json.loads(value))
    except (ValueError, RecursionError):
        raise ValueError("isn't JSON; give an object of names and values") from None


def _template_kwargs(value: dict[str, JsonValue]) -> str:
    """The arguments as JSON text, which keeps the order of keys. Raises PydanticCustomError for a reserved name."""
    for name in value:
        if not name.isidentifier():
            raise PydanticCustomError(
                "name",
                "has the name {name}; names are letters, digits and _, such as enable_thinking",
                {"name": _short(name)},
            )
        if name in _TEMPLATES_OWN or name.endswith(("_token", "_tokens")):
            raise PydanticCustomError(
                "reserved", "has the name {name}, which rendering sets itself; leave it out", {"name": _short(name)}
            )
    written = _as_json(value, (",", ":"))
    _check_bytes(written, MAX_TEMPLATE_KWARGS_BYTES)
    return written


TopLogprobs = Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)]
TemplateKwargs = Annotated[dict[str, JsonValue], BeforeValidator(_object_of), AfterValidator(_template_kwargs)]
"""Given as an object or as its JSON text, kept as the text."""


def check_prompt_logprobs(request: Mapping[str, Any]) -> None:
    """Raises RequestError for an echo of a chat, and for more of a prompt's logprobs than may be stored."""
    if request.get("echo") and request.get("messages") is not None:
        raise RequestError("echo: needs prompt or prompt_token_ids, not messages", field="echo")
    top = request.get("prompt_logprobs")
    if top is not None:
        check_prompt_tokens(len(request.get("prompt_token_ids") or ()), top)


def check_prompt_tokens(tokens: int, top: int) -> None:
    """Raises RequestError where a prompt of so many tokens has too many log-probabilities to be stored."""
    if tokens * (1 + top) > MAX_PROMPT_LOGPROBS:
        limit = MAX_PROMPT_LOGPROBS // (1 + top)
        message = f"with prompt_logprobs {top} a prompt has at most {limit} tokens; this one has {tokens}"
        raise RequestError(
            f"prompt_logprobs: {message}", field="prompt_logprobs", limit=limit, code="prompt_logprobs_too_large"
        )


def check_min_tokens(least: int, most: int) -> None:
    """Raises RequestError where more tokens are asked for at least than at most."""
    if least > most:
        message = f"min_tokens: {least} is more than max_new_tokens, which is {most} here"
        raise RequestError(message, field="min_tokens", limit=most)


def check_logprobs(request: Mapping[str, Any]) -> None:
    """Raises RequestError for alternatives without logprobs, and for more logprobs than a stream may have."""
    top, most = request.get("top_logprobs", 0), request["max_new_tokens"]
    if not request.get("logprobs", False):
        if top:
            raise RequestError("top_logprobs: needs logprobs: true beside it", field="top_logprobs")
        return
    if most is not None and most > most_with_logprobs(top):
        limit = most_with_logprobs(top)
        message = f"max_new_tokens: at most {limit} are allowed with logprobs and top_logprobs {top} (got {most})"
        raise RequestError(message, field="max_new_tokens", limit=limit)


def most_with_logprobs(top: int) -> int:
    """The most tokens of an answer with so many alternatives a token."""
    return MAX_LOGPROBS // (1 + top)
