"""Tasks that must not end by themselves, and ending tasks for sure."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

log = logging.getLogger(__name__)

_AGAIN_S: Final = 0.1
_BACK_OFF_S: Final = 0.2
_MOST_BACK_OFF_S: Final = 5.0
_SOUND_S: Final = 2.0
"""A task that has run for so long since it failed is sound again."""


class Background:
    """The work of a process that must go on: what ends, however it does, is logged and begun again after a back-off."""

    def __init__(self) -> None:
        self.tasks: list[asyncio.Task[None]] = []
        self._down: dict[str, BaseException | None] = {}

    @property
    def down(self) -> dict[str, str]:
        """Work that has failed and hasn't run soundly since → with what."""
        return {name: type(error).__name__ if error else "it ended" for name, error in self._down.items()}

    def keep(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        """Run `work` over and over, until `stop`."""
        self.tasks.append(asyncio.create_task(self._kept(name, work), name=name))

    async def stop(self) -> None:
        await stop(self.tasks)

    async def _kept(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        loop, back_off_s = asyncio.get_running_loop(), _BACK_OFF_S
        while True:
            sound = loop.call_later(_SOUND_S, self._down.pop, name, None)
            error: BaseException | None = None
            try:
                await work()
            except asyncio.CancelledError as cancelled:
                task = asyncio.current_task()
                if task is None or task.cancelling():
                    raise
                error = cancelled  # from within: a library's, which nobody meant for this task
            except Exception as failed:  # noqa: BLE001  it's logged below, whatever it is
                error = failed
            finally:
                sound.cancel()
            if name not in self._down:
                back_off_s = _BACK_OFF_S
            self._down[name] = error
            log.error("background task %s failed; again in %g s", name, back_off_s, exc_info=error)
            await asyncio.sleep(back_off_s)
            back_off_s = min(back_off_s * 2, _MOST_BACK_OFF_S)


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
