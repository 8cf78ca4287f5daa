"""Whether a field's value asks for nothing: null, empty, or what is the case anyhow. For tables of fields."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tokenrelay.gateway.openai.bodies.coercion import flag, number

if TYPE_CHECKING:
    from collections.abc import Callable

    Harmless = Callable[[Any], bool]


def is_nothing(value: Any) -> bool:
    """Whether a value is how clients write that they ask for nothing: null, or empty."""
    return value is None or value in ("", [], {})


def absent(value: Any) -> bool:
    return value is None


def off(value: Any) -> bool:
    return value is None or flag(value) is False


def on(value: Any) -> bool:
    return value is None or flag(value) is True


def unasked(value: Any) -> bool:
    """Null or false; 0 is a number, and of some fields an answer's part."""
    return value is None or value is False


def one_of(*words: Any) -> Harmless:
    """Nothing, or one of the words."""
    return lambda value: is_nothing(value) or value in words


def equal(*neutral: float) -> Harmless:
    """Null, or one of the numbers that change nothing; also written as a string."""
    return lambda value: value is None or (not isinstance(value, bool) and number(value) in neutral)


def at_most(bound: float) -> Harmless:
    """Null, or a number up to `bound`."""

    def is_at_most(value: Any) -> bool:
        read = number(value)
        return value is None or (isinstance(read, int | float) and not isinstance(read, bool) and read <= bound)

    return is_at_most
