"""Predicates for no-op values of fields: null, empty, or equal to the default behaviour."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tokenrelay.gateway.openai.bodies.coercion import flag, number

if TYPE_CHECKING:
    from collections.abc import Callable

    IsNoOp = Callable[[Any], bool]


def is_empty(value: Any) -> bool:
    """Whether the value is null or empty."""
    return value is None or value in ("", [], {})


def is_null(value: Any) -> bool:
    return value is None


def off(value: Any) -> bool:
    return value is None or flag(value) is False


def on(value: Any) -> bool:
    return value is None or flag(value) is True


def is_null_or_false(value: Any) -> bool:
    """Null or false, but not 0, which some fields take as a number."""
    return value is None or value is False


def one_of(*words: Any) -> IsNoOp:
    """Empty, or one of the words."""
    return lambda value: is_empty(value) or value in words


def equal(*neutral: float) -> IsNoOp:
    """Null, or one of the neutral numbers, also as a string."""
    return lambda value: value is None or (not isinstance(value, bool) and number(value) in neutral)


def at_most(bound: float) -> IsNoOp:
    """Null, or a number up to `bound`."""

    def is_at_most(value: Any) -> bool:
        read = number(value)
        return value is None or (isinstance(read, int | float) and not isinstance(read, bool) and read <= bound)

    return is_at_most
