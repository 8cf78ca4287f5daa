"""A time limit for third-party code that may never return, such as a model's chat template. Knows no prompts."""

from __future__ import annotations

import ctypes
import math
import threading
from typing import TYPE_CHECKING, Final, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")
_SLICE_S: Final = 0.1


class TimeLimitReached(BaseException):
    """The code was interrupted. A BaseException, so that the code itself doesn't catch it."""


def within(limit_s: float, do: Callable[[], T]) -> T:
    """The result of `do`. Raises what it raises, and TimeLimitReached after the limit.

    It runs in a thread of its own, which Python interrupts between two bytecodes: a C function that hangs isn't
    interrupted, and blocks the caller.
    """
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(do())
        except BaseException as error:  # noqa: BLE001  raised again in the caller's thread
            errors.append(error)

    thread = threading.Thread(target=run, name="within", daemon=True)
    thread.start()
    for _ in range(math.ceil(limit_s / _SLICE_S)):  # a process that was stopped meanwhile loses one slice
        thread.join(_SLICE_S)
        if not thread.is_alive():
            break
    if thread.is_alive() and thread.ident is not None:
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(TimeLimitReached))
        thread.join()
    if results:
        return results[0]
    raise errors[0] if errors else TimeLimitReached
