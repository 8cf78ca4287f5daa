"""Periodic tasks beside the generation loop, each in a thread of its own, so that none delays another."""

from __future__ import annotations

import logging
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from redis.exceptions import RedisError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tokenrelay.worker.threads import GenerationThreads

log = logging.getLogger(__name__)

MIN_PAUSE_S: Final = 0.02


@contextmanager
def periodic(
    name: str, task: Callable[[], object], pause_s: Callable[[], float], threads: GenerationThreads
) -> Iterator[None]:
    """Run `task` again and again while the block lasts, `pause_s()` apart, while the generation loop is alive.

    A worker whose loop hangs must lose its registration and the maintenance of its queues. A redis error is counted
    and the task is retried; anything else ends the loop.
    """
    stopped = threading.Event()

    def attempt() -> None:
        try:
            task()
        except RedisError as error:
            threads.figures.redis_errors.add(name)
            log.warning("%s: %s; retrying", name, error)

    def repeat() -> None:
        due_in_s = 0.0
        while not stopped.wait(max(due_in_s, MIN_PAUSE_S)):
            if threads.status.alive:
                attempt()
                due_in_s = pause_s()

    thread = threads.thread(name, repeat)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()
