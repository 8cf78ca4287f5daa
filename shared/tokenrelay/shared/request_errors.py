"""What a caller is told of an invalid request: the field, the reason and the limit. Knows pydantic's errors."""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Final, cast

from tokenrelay.shared.chat import Message, Tool
from tokenrelay.shared.errors import RequestError
from tokenrelay.shared.request_fields import (
    MAX_BIAS,
    MAX_DEADLINE_S,
    MAX_PENALTY,
    MAX_REPETITION_PENALTY,
    MAX_TEMPERATURE,
)
from tokenrelay.shared.response_format import Format

if TYPE_CHECKING:
    from collections.abc import Collection

    from pydantic import ValidationError


def request_error(error: ValidationError, fields: Collection[str]) -> RequestError:
    """The first of the errors, as the caller reads it. `fields`: all that a request may have."""
    first = error.errors(include_url=False)[0]
    field = ".".join(str(part) for part in first["loc"][:3]) or "request"
    context: dict[str, Any] = first.get("ctx", {})
    bounds = ("ge", "gt", "le", "lt", "min_length", "max_length", "expected")
    limit = next((context[name] for name in bounds if name in context), None)
    reason = first["msg"].removeprefix("Value error, ")
    if first["type"] == "finite_number":
        limit = _FINITE_LIMITS.get(field.partition(".")[0])
        reason += f", at most {limit:g}" if limit is not None else ""
    if first["type"] == "extra_forbidden":
        return _unknown_field(field, fields)
    shown = "" if isinstance(first["input"], dict | list) or field == "prompt" else f" (got {_short(first['input'])})"
    return RequestError(f"{field}: {reason}{shown}", field=field, limit=cast("object", limit))


_INNER: Final = {
    "messages": tuple(Message.__annotations__),
    "response_format": tuple(Format.__annotations__),
    "tools": tuple(Tool.__annotations__),
}
"""The fields of the options that are objects."""


def _unknown_field(field: str, fields: Collection[str]) -> RequestError:
    """The error of a field that isn't in the schema, with the names that are."""
    option, _, key = field.rpartition(".")
    names = _INNER.get(field.partition(".")[0], fields)
    meant = next(iter(get_close_matches(key, names, 1)), "")
    if option == "response_format" and key in _VALUES:
        meant = "value"
    hint = f"; did you mean {meant}?" if meant else ";"
    if key == "json_schema":
        hint += " it's the schema itself, without OpenAI's name around it;"
    return RequestError(f"{field}: unknown field{hint} known ones are {', '.join(sorted(names))}", field=field)


_VALUES: Final = ("json_schema", "schema", "json", "pattern", "regex", "choice", "choices", "grammar", "lark")
"""What other APIs, and guesses, call a format's value."""

_FINITE_LIMITS: Final = {
    "temperature": MAX_TEMPERATURE,
    "top_p": 1.0,
    "deadline_s": MAX_DEADLINE_S,
    "min_p": 1.0,
    "repetition_penalty": MAX_REPETITION_PENALTY,
    "frequency_penalty": MAX_PENALTY,
    "presence_penalty": MAX_PENALTY,
    "logit_bias": MAX_BIAS,
}
"""What the fields that may not be infinite or NaN are bounded by."""


def _short(value: object) -> str:
    try:
        shown = ascii(value)
    except ValueError:
        return "an integer of thousands of digits"
    return shown if len(shown) <= 60 else shown[:57] + "..."
