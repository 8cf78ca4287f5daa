"""Scalars as clients write them: `"0.7"`, `6.0` and `1` for 0.7, 6 and true, where nothing is lost by it.

What would lose something comes back as it was, for the schema to refuse by name.
"""

from __future__ import annotations

from typing import Annotated, Any, Final

from pydantic import BeforeValidator

_EXACT: Final = 2**53
"""Up to here a float holds every whole number."""
_FLAGS: Final = {"true": True, "1": True, "false": False, "0": False}


def number(value: Any) -> Any:
    """A string that is a number as that number."""
    if not isinstance(value, str) or "_" in value:  # Python's own spelling: 1_000
        return value
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return value


def whole(value: Any) -> Any:
    """A float or a string that is a whole number as that number."""
    found = number(value)
    if isinstance(found, float) and found.is_integer() and abs(found) <= _EXACT:
        return int(found)
    return found if isinstance(found, int) else value


def flag(value: Any) -> Any:
    """0, 1 and the words of both as a boolean."""
    if isinstance(value, str):
        return _FLAGS.get(value.strip().lower(), value)
    return bool(value) if isinstance(value, int | float) and value in (0, 1) else value


Whole = Annotated[int, BeforeValidator(whole)]
Real = Annotated[float, BeforeValidator(number)]
Flag = Annotated[bool, BeforeValidator(flag)]
