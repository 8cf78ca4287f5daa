"""The line between a supervisor and its child: progress one way, life both ways.

The child writes a line a heartbeat; the supervisor's end of the other pipe is held open as long as it lives. Each end
sees the other's death at once, as an end of file: no signal, no polling, no process ID that may be used again.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import threading
import time
from typing import TYPE_CHECKING, Final

from tokenrelay.worker.core.status import Progress

if TYPE_CHECKING:
    from collections.abc import Callable


class ReportReader:
    """The supervisor's end."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._rest = b""

    def read(self, timeout_s: float) -> list[Progress] | None:
        """The reports that came within `timeout_s`; None where the child is gone."""
        if not select.select([self._descriptor], [], [], timeout_s)[0]:
            return []
        data = os.read(self._descriptor, 65_536)
        if not data:
            return None
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [Progress(*map(int, line.split())) for line in lines]

    def close(self) -> None:
        os.close(self._descriptor)


def report_regularly(descriptor: int, progress: Callable[[], Progress], every_s: float) -> None:
    """Report from a thread of its own, which waits for nothing else: not for Redis, not for the engine. A supervisor
    that is gone is the tether's to notice."""
    os.set_blocking(descriptor, False)

    def report() -> None:
        while True:
            now = progress()
            with contextlib.suppress(OSError):  # a full pipe or no reader: the next report says more
                os.write(descriptor, f"{now.in_flight} {now.progress}\n".encode())
            time.sleep(every_s)

    threading.Thread(target=report, name="report", daemon=True).start()


ORPHAN_GRACE_S: Final = 10.0
"""How long a child may take to hand back once its supervisor is gone. One that hangs has nobody left to kill it."""


class Tether:
    """The child's end of the pipe `descriptor`, which its supervisor holds open and writes nothing into.

    From the start on, the process ends as soon as the other end is closed: it holds nothing yet. After `hand_over` it
    hands back first.
    """

    def __init__(self, descriptor: int, grace_s: float = ORPHAN_GRACE_S) -> None:
        self._descriptor = descriptor
        self._grace_s = grace_s
        self._act: Callable[[], None] | None = None
        self._signal(on=True)
        if select.select([descriptor], [], [], 0)[0]:
            os._exit(1)  # the supervisor died before this process could look
        threading.Thread(target=self._wait, name="tether", daemon=True).start()

    def hand_over(self, act: Callable[[], None]) -> None:
        """Call `act` from now on, from a thread of its own, and end the process where it hasn't ended by itself within
        the grace."""
        self._act = act
        self._signal(on=False)

    def _signal(self, *, on: bool) -> None:
        """Have the kernel end the process by SIGIO: loading a large library or a GPU's driver may hold Python's lock
        for seconds, in which no thread runs. macOS ignores SIGIO; there the thread alone ends the process."""
        fcntl.fcntl(self._descriptor, fcntl.F_SETOWN, os.getpid())
        flags = fcntl.fcntl(self._descriptor, fcntl.F_GETFL)
        fcntl.fcntl(self._descriptor, fcntl.F_SETFL, flags | os.O_ASYNC if on else flags & ~os.O_ASYNC)

    def _wait(self) -> None:
        while os.read(self._descriptor, 1):
            pass
        try:
            if self._act is not None:
                self._act()
                time.sleep(self._grace_s)
        finally:
            os._exit(1)
