"""Demo mode: a private Redis and worker for one gateway, and a way to kill the worker's engine process."""

from __future__ import annotations

import os
import signal
from contextlib import ExitStack
from typing import TYPE_CHECKING, Self

from tokenrelay.producer.local import LocalRedis, LocalWorker

if TYPE_CHECKING:
    from tokenrelay.gateway.core.gateway import Gateway


class Demo:
    """Context manager that runs a Redis and a worker. `redis_url` is valid inside the `with` block."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self.redis_url = ""

    def __enter__(self) -> Self:
        """Wait until the worker serves the bundled model. Raises RedisUnusable, TokenRelayError."""
        with ExitStack() as stack:
            self.redis_url = stack.enter_context(LocalRedis()).url
            stack.enter_context(LocalWorker(self.redis_url))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    async def kill_engine(self, gateway: Gateway) -> int:
        """SIGKILL the engine's processes and return how many were killed. The worker's supervisor restarts them.

        Process IDs come from worker registrations in a Redis that only this user can reach.
        """
        models = await gateway.models.served()
        pids = {pid for model in models.values() for pid in model.pids}
        return sum(_kill(pid) for pid in pids)


def _kill(pid: int) -> bool:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True
