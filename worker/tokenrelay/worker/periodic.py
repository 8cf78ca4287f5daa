"""Periodic tasks beside the generation loop, each in a thread of its own, so that none delays another."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Final, Self

from redis.exceptions import RedisError

from tokenrelay.worker.core.messages import ThreadDied

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from tokenrelay.worker.threads import GenerationThreads

log = logging.getLogger(__name__)

LEAST_PAUSE_S: Final = 0.02


class Periodic:
    """Runs `task` again and again while the block lasts, `pause_s()` apart, while the generation loop comes round.

    A worker whose loop hangs must lose its registration and the maintenance of its queues. A redis error is counted
    and the task is tried again; anything else ends the loop.
    """

    def __init__(
        self, name: str, task: Callable[[], object], pause_s: Callable[[], float], threads: GenerationThreads
    ) -> None:
        self._name = name
        self._task = task
        self._pause_s = pause_s
        self._threads = threads
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            pause_s = 0.0
            while not self._stopped.wait(max(pause_s, LEAST_PAUSE_S)):
                if self._threads.status.alive:
                    self._try()
                    pause_s = self._pause_s()
        except BaseException as error:
            log.exception("the thread %s failed", self._name)
            self._threads.post(ThreadDied(error))

    def _try(self) -> None:
        try:
            self._task()
        except RedisError as error:
            self._threads.figures.redis_errors.add(self._name)
            log.warning("%s: %s; trying again", self._name, error)
