"""Ending tasks for sure."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

_AGAIN_S: Final = 0.1


async def stop(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel the tasks until each has ended, however it ends.

    Once isn't enough: before Python 3.12 `asyncio.wait_for`, with which redis-py sends, swallows a cancellation that
    arrives together with its result (https://github.com/python/cpython/issues/86296).
    """
    pending = set(tasks)
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=_AGAIN_S)
