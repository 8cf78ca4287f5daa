"""Lossless coercion of scalars: `"0.7"`, `6.0` and `1` become 0.7, 6 and true.

A value that would lose information is returned unchanged, and the schema refuses it by name.
"""

from __future__ import annotations

from typing import Annotated, Any, Final

from pydantic import BeforeValidator

NO_LIMIT: Final = -1
"""No limit, as in llama.cpp and LM Studio."""
_EXACT: Final = 2**53
"""A float holds every whole number up to here."""
_FLAGS: Final = {"true": True, "1": True, "false": False, "0": False}


def number(value: Any) -> Any:
    """A numeric string as a number."""
    if not isinstance(value, str) or "_" in value:  # int() accepts 1_000
        return value
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return value


def whole(value: Any) -> Any:
    """A whole float or string as an int."""
    found = number(value)
    if isinstance(found, float) and found.is_integer() and abs(found) <= _EXACT:
        return int(found)
    return found if isinstance(found, int) else value


def flag(value: Any) -> Any:
    """0, 1, "0", "1", "true" and "false" as a boolean."""
    if isinstance(value, str):
        return _FLAGS.get(value.strip().lower(), value)
    return bool(value) if isinstance(value, int | float) and value in (0, 1) else value


def prediction(value: Any) -> Any:
    """llama.cpp and Ollama: -2 means up to the context length, as no limit does here."""
    return NO_LIMIT if number(value) == -2 else whole(value)


def queue(value: Any) -> Any:
    """vLLM's priority 0 is the default queue."""
    return "default" if not isinstance(value, bool) and number(value) == 0 else value


def false_is_none(value: Any) -> Any:
    return None if value is False else value


Whole = Annotated[int, BeforeValidator(whole)]
Real = Annotated[float, BeforeValidator(number)]
Flag = Annotated[bool, BeforeValidator(flag)]
Prediction = Annotated[int, BeforeValidator(prediction)]
