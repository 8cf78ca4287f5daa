"""What a caller may ask for: the one schema of a request, its bounds and its defaults.

`Options` types the keyword arguments of `submit`, is what validates them, and is what the worker reads from the
request's hash. It doesn't know which model will answer: whether a prompt fits is the worker's to say.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, cast

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, JsonValue, TypeAdapter, ValidationError
from pydantic_core import PydanticCustomError
from typing_extensions import TypedDict

from tokenrelay.shared.errors import RequestError
from tokenrelay.shared.wire import keys

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_STOP: Final = 16
MAX_SEED: Final = 2**63 - 1
MAX_TEMPERATURE: Final = 100.0
MAX_DEADLINE_S: Final = 7 * 86_400.0
MAX_TOP_K: Final = 2**31 - 1
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


def _not_blank(value: str) -> str:
    if not value.strip():
        raise ValueError("is empty or blank; give at least one visible character")
    return value


def _model_name(value: str) -> str:
    if not keys.is_model_name(value):
        raise PydanticCustomError(
            "model_name",
            "must be a name such as 'weather' or 'owner/name': letters, digits, . _ - (no --), at most {le} characters",
            {"le": keys.MAX_MODEL_CHARS},
        )
    return value


def _shallow(value: Any) -> Any:
    """Looked at level by level: Python's objects may hold themselves."""
    layer, levels = [value], 0
    while layer := [each for each in layer if isinstance(each, dict | list)]:
        levels += 1
        if levels > MAX_METADATA_DEPTH:
            raise PydanticCustomError("too_deep", "nests more than {le} levels", {"le": MAX_METADATA_DEPTH})
        inner = (child for each in layer for child in (each.values() if isinstance(each, dict) else each))
        layer = list({id(child): child for child in inner}.values())
    return value


def _small_metadata(value: dict[str, JsonValue]) -> dict[str, JsonValue]:
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


class Options(TypedDict, total=False):
    """How to generate. Each has a default; a value out of bounds is a RequestError that names the field."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True)  # type: ignore[misc]

    messages: Annotated[list[Message] | None, Field(min_length=1, max_length=1024)]
    """A chat instead of a prompt; the worker applies the model's chat template."""
    model: Annotated[str, AfterValidator(_model_name)]
    """The model to ask, as its workers serve it."""
    priority: Priority
    """Which of the model's queues: high is served first, low last."""
    max_new_tokens: Annotated[int | None, Field(ge=1)]
    """The answer's limit in tokens, cut to the operator's limit and to what the model's context leaves."""
    temperature: Annotated[float, Field(ge=0, le=MAX_TEMPERATURE, allow_inf_nan=False)]
    """0 is greedy; otherwise logits are divided by it before sampling. 1.0, where the model has no default."""
    top_k: Annotated[int, Field(ge=0, le=MAX_TOP_K)]
    """Sample among the k likeliest tokens; 0 is all, and the default of a model that has none of its own."""
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
    """Sample among the likeliest tokens that hold this share of the probability; 1 is all, and the default likewise."""
    seed: Annotated[int | None, Field(ge=0, le=MAX_SEED)]
    """Decides every draw together with the token's position; None draws one at submit."""
    stop: Annotated[list[Annotated[Text, Field(min_length=1, max_length=256)]], Field(max_length=MAX_STOP)]
    """The answer ends before the first of these strings."""
    ignore_eos: bool
    """Go on past the end-of-sequence token, up to the limit."""
    deadline_s: Annotated[float, Field(gt=0, le=MAX_DEADLINE_S, allow_inf_nan=False)]
    """Seconds from submit after which the request ends, finished or not."""
    metadata: Annotated[dict[str, JsonValue], BeforeValidator(_shallow), AfterValidator(_small_metadata)]
    """Comes back in the stream's first entry and in the answer."""
    idempotency_key: Annotated[Text | None, Field(min_length=1, max_length=256)]
    """The same key and body attach to the generation that is there; another body is refused."""


class Submission(Options, total=False):
    """A whole request: options and the prompt (or `messages`)."""

    prompt: Annotated[Text | None, AfterValidator(lambda value: value if value is None else _not_blank(value))]
    """The text to continue, taken as text: control tokens in it have no power."""


class _Glance(TypedDict, total=False):
    """What of a request is shown whatever its version."""

    __pydantic_config__ = ConfigDict(extra="ignore", strict=True)  # type: ignore[misc]

    model: Annotated[str, AfterValidator(_model_name)]
    messages: list[dict[str, JsonValue]] | None
    max_new_tokens: int | None
    temperature: float
    top_p: float
    metadata: dict[str, JsonValue]


DEFAULTS: Final[Submission] = {
    "prompt": None,
    "messages": None,
    "model": "weather",
    "priority": "default",
    "max_new_tokens": None,
    "temperature": 1.0,
    "top_k": 0,
    "top_p": 1.0,
    "seed": None,
    "stop": [],
    "ignore_eos": False,
    "deadline_s": 600.0,
    "metadata": {},
    "idempotency_key": None,
}

MODELS_OWN: Final = frozenset({"temperature", "top_k", "top_p"})
"""Options for which a model may have defaults of its own (its generation_config.json), as vLLM takes them."""

WIRE: Final = "1"
"""The wire version of the requests that `load` reads, as their hash says it: docs/wire.md."""

_ADAPTER: Final = TypeAdapter(Submission)
_GLANCE: Final = TypeAdapter(_Glance)
_NOT_IN_BODY: Final = ("idempotency_key",)
_HASHED_BUDGET: Final = 256
"""Stands in the body hash of a request without a limit: its default when idempotency keys began to be stored."""
_MOST_TOKENS: Final = 2**53
"""Larger limits mean no more than this one, which every JSON reader holds exactly."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The bounds that an operator sets."""

    max_prompt_chars: int
    max_new_tokens: int


@cache
def _options() -> TypeAdapter[Options]:
    return TypeAdapter(Options)


def json_schema() -> dict[str, Any]:
    """Of a submission, every field with its description."""
    schema = _ADAPTER.json_schema()
    # Of a TypedDict pydantic reads the docstrings of its own fields, not of those that it inherits.
    schema["properties"] |= _options().json_schema()["properties"]
    return schema


def validate(submission: Mapping[str, Any], limits: Limits) -> Submission:
    """The whole request with defaults filled in. Raises RequestError naming the field and the limit."""
    try:
        request = _ADAPTER.validate_python({**DEFAULTS, **submission})
    except ValidationError as error:
        raise _request_error(error) from None
    if (request["prompt"] is None) == (request["messages"] is None):
        which = "neither" if request["prompt"] is None else "both"
        raise RequestError(f"prompt, messages: {which} given; give exactly one of them", field="prompt")
    contents = [message["content"] for message in request["messages"] or []]
    # One blank message among others is fine: chat clients send an empty system message, for one.
    if contents and not any(content.strip() for content in contents):
        raise RequestError("messages: every content is empty or blank; give some text", field="messages")
    size = sum(map(len, contents)) or len(request["prompt"] or "")
    _check_size("messages" if contents else "prompt", size, limits.max_prompt_chars)
    return request


def _check_size(field: str, chars: int, limit: int) -> None:
    """Raises RequestError where the text is over the limit: in the code and words of a prompt beyond the model's
    context, by which clients tell that they have to shorten it."""
    if chars > limit:
        raise RequestError(
            f"{field}: the prompt is too long: {chars} characters, at most {limit} are allowed; this model's maximum "
            f"context length is {limit} characters here (TOKENRELAY_MAX_PROMPT_CHARS)",
            field=field,
            limit=limit,
            code="prompt_too_long",
        )


def dump(request: Submission) -> str:
    """The request as the JSON that its hash keeps (and whose seed the worker relies on)."""
    body = {name: value for name, value in request.items() if name not in _NOT_IN_BODY}
    return json.dumps(body, ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False)


def load(raw: str | bytes) -> Submission:
    """The request of a hash, as a worker reads it. Raises RequestError: what's in Redis needn't be ours."""
    try:
        request = _ADAPTER.validate_json(raw)
    except ValidationError as error:
        raise _request_error(error) from None
    missing = [name for name in DEFAULTS if name not in request and name not in _NOT_IN_BODY]
    if missing:
        raise RequestError(f"{missing[0]}: missing from the stored request", field=missing[0])
    return request


def glance(raw: str | bytes) -> Submission:
    """The request of a later wire version, for those who only show it. Raises RequestError.

    Its new fields are left out, and absent ones have their defaults.
    """
    try:
        seen = _GLANCE.validate_json(raw)
    except ValidationError as error:
        raise _request_error(error) from None
    return cast("Submission", {**DEFAULTS, **seen})


def budget(request: Submission, limits: Limits) -> int:
    """The `max_new_tokens` to store: the caller's limit or, where that is larger or not given, the operator's."""
    return min(request["max_new_tokens"] or limits.max_new_tokens, limits.max_new_tokens)


def sampling_defaults(found: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a model's own defaults that are options here and within their bounds."""
    kept: dict[str, Any] = {}
    for name in sorted(MODELS_OWN & found.keys()):
        with suppress(ValidationError):
            kept.update(_options().validate_python({name: found[name]}))
    return kept


def body_sha256(request: Submission, limits: Limits) -> str:
    """What two requests under one idempotency key must share. Taken before seed, budget and deadline are resolved.

    A key outlives an upgrade: what was hashed for a body in one release is hashed for it in the next.
    """
    given = min(request["max_new_tokens"] or min(_HASHED_BUDGET, limits.max_new_tokens), _MOST_TOKENS)
    return hashlib.sha256(dump({**request, "max_new_tokens": given}).encode()).hexdigest()


def _request_error(error: ValidationError) -> RequestError:
    first = error.errors(include_url=False)[0]
    field = ".".join(str(part) for part in first["loc"][:3]) or "request"
    context: dict[str, Any] = first.get("ctx", {})
    bounds = ("ge", "gt", "le", "lt", "min_length", "max_length", "expected")
    limit = next((context[name] for name in bounds if name in context), None)
    reason = first["msg"].removeprefix("Value error, ")
    if first["type"] == "finite_number":
        limit = _FINITE_LIMITS.get(field)
        reason += f", at most {limit:g}" if limit is not None else ""
    if first["type"] == "extra_forbidden":
        names = Message.__annotations__ if "." in field else DEFAULTS
        known = ", ".join(sorted(names))
        close = get_close_matches(field.rpartition(".")[2], names, 1)
        meant = f"; did you mean {close[0]}?" if close else ";"
        return RequestError(f"{field}: unknown field{meant} known ones are {known}", field=field)
    shown = "" if isinstance(first["input"], dict | list) or field == "prompt" else f" (got {_short(first['input'])})"
    return RequestError(f"{field}: {reason}{shown}", field=field, limit=cast("object", limit))


_FINITE_LIMITS: Final = {"temperature": MAX_TEMPERATURE, "top_p": 1.0, "deadline_s": MAX_DEADLINE_S}
"""What the fields that may not be infinite or NaN are bounded by."""


def _short(value: object) -> str:
    try:
        shown = ascii(value)
    except ValueError:
        return "an integer of thousands of digits"
    return shown if len(shown) <= 60 else shown[:57] + "..."
