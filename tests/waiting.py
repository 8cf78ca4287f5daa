"""Waiting on conditions: the only place where tests poll."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

Value = TypeVar("Value")


def wait_until(
    condition: Callable[[], Value | None], timeout_s: float = 30.0, sleep: Callable[[float], object] = time.sleep
) -> Value:
    """Poll until `condition` returns a true value, and return it. Fails the test after `timeout_s`."""
    end = time.monotonic() + timeout_s
    while not (value := condition()):
        if time.monotonic() > end:
            raise AssertionError(f"not within {timeout_s} s: {condition.__doc__ or condition.__qualname__}")
        sleep(0.01)
    return value
