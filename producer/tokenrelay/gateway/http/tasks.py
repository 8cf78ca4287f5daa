"""Background tasks that are restarted when they end, and reliable cancellation."""

from __future__ import annotations

import asyncio
import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator

log = logging.getLogger(__name__)

_CANCEL_AGAIN_S: Final = 0.1
_BACK_OFF_S: Final = 0.2
_MOST_BACK_OFF_S: Final = 5.0
_HEALTHY_S: Final = 2.0
"""A task that has run this long since its last failure counts as healthy."""


class Background:
    """Background tasks of one process. A task that ends for any reason is logged and restarted with back-off."""

    def __init__(self) -> None:
        self.tasks: list[asyncio.Task[None]] = []
        self._failing: dict[str, BaseException | None] = {}

    @property
    def failing(self) -> dict[str, str]:
        """Failing tasks → the error of each."""
        return {name: type(error).__name__ if error else "it ended" for name, error in self._failing.items()}

    def run_forever(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        """Run `work`, and restart it whenever it ends, until `stop`."""
        self.tasks.append(asyncio.create_task(self._run_forever(name, work), name=name))

    async def stop(self) -> None:
        await cancel_all(self.tasks)

    async def _run_forever(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        loop, back_off_s = asyncio.get_running_loop(), _BACK_OFF_S
        while True:
            recovery = loop.call_later(_HEALTHY_S, self._failing.pop, name, None)
            error: BaseException | None = None
            try:
                await work()
            except asyncio.CancelledError as cancelled:
                task = asyncio.current_task()
                if task is None or task.cancelling():
                    raise
                error = cancelled  # raised inside a library, not a cancellation of this task
            except Exception as failed:  # noqa: BLE001  logged below
                error = failed
            finally:
                recovery.cancel()
            if name not in self._failing:
                back_off_s = _BACK_OFF_S
            self._failing[name] = error
            log.error("background task %s failed; restarting in %g s", name, back_off_s, exc_info=error)
            await asyncio.sleep(back_off_s)
            back_off_s = min(back_off_s * 2, _MOST_BACK_OFF_S)


async def cancel_all(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel the tasks repeatedly until all have ended.

    One cancellation isn't enough: before Python 3.12 `asyncio.wait_for`, which redis-py uses to send, swallows a
    cancellation that arrives together with its result (https://github.com/python/cpython/issues/86296).
    """
    pending = set(tasks)
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=_CANCEL_AGAIN_S)


@contextmanager
def insistent_timeout(seconds: float) -> Iterator[None]:
    """As asyncio.timeout, and cancels again and again until the block is left.

    redis-py connects by asyncio.wait_for, whose Python 3.11 drops a cancellation that comes as its work is done. Its
    nested retries against a server that hangs then go on for minutes.
    """
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    if task is None:
        raise RuntimeError("a timeout is of a task, and none runs here")
    before, fired = task.cancelling(), 0
    timer = loop.call_later(seconds, lambda: cancel())

    def cancel() -> None:
        nonlocal fired, timer
        fired += 1
        task.cancel()
        timer = loop.call_later(_CANCEL_AGAIN_S, cancel)

    try:
        yield
    except asyncio.CancelledError:
        if fired and task.cancelling() - fired <= before:
            raise TimeoutError from None
        raise
    finally:
        timer.cancel()
        for _ in range(fired):
            task.uncancel()
