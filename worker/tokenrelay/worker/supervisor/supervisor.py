"""The supervisor: one engine child per device, kept running. It loads no torch: nothing an engine does can kill it.

A child that dies has its leases released at once and is restarted, with back-off; one that hangs is killed, which is
the same. Knows nothing of requests beyond releasing a dead child's.
"""

from __future__ import annotations

import logging
import signal
import sys
import threading
from queue import SimpleQueue
from typing import TYPE_CHECKING, Final
from uuid import uuid4

from tokenrelay.shared.redis.batches import Pipeline
from tokenrelay.shared.redis.servers import connect
from tokenrelay.worker.supervisor.device_supervisor import DeviceSupervisor, Launch
from tokenrelay.worker.supervisor.devices import check_ports, devices
from tokenrelay.worker.supervisor.exits import FAILED

if TYPE_CHECKING:
    from types import FrameType

    from tokenrelay.shared.settings import WorkerSettings

log = logging.getLogger(__name__)

CHILD: Final = (sys.executable, "-m", "tokenrelay.worker.supervisor.child")


class Supervisor:
    """Keeps one child per device running until it's stopped. `command` starts a child; arguments are added."""

    def __init__(self, settings: WorkerSettings, command: tuple[str, ...] = CHILD) -> None:
        self._settings = settings
        self._command = command
        self._stopping = threading.Event()
        self._inbox: SimpleQueue[int | None] = SimpleQueue()
        """The exit codes of devices that are done; None for a signal to stop."""

    def run(self) -> int:
        """Supervise until every child has stopped; the worst exit code. Raises SettingsError before any is started."""
        found = devices(self._settings)
        check_ports(self._settings, len(found))
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self.stop)
        name, pipeline = self._settings.worker_name or uuid4().hex[:12], _pipeline(self._settings)
        launches = [Launch(self._command, f"{name}.{index}", device, index) for index, device in enumerate(found)]
        supervised = [DeviceSupervisor(launch, self._settings, pipeline, self._stopping) for launch in launches]
        for each in supervised:
            self._start(each)
        codes: list[int] = []
        while len(codes) < len(supervised):
            code = self._inbox.get()
            if code is not None:
                codes.append(code)
                continue
            self._stopping.set()
            for each in supervised:
                each.forward_stop()
        return max(codes)

    def stop(self, signum: int = signal.SIGTERM, frame: FrameType | None = None) -> None:
        """Forward a signal: the first drains the children, the second makes them hand back at once.

        As a signal handler it only posts: the thread that is interrupted may hold any lock, an Event's too.
        """
        self._inbox.put(None)

    def _start(self, each: DeviceSupervisor) -> None:
        try:
            threading.Thread(target=self._supervise, args=(each,), name=each.name).start()
        except RuntimeError as error:  # out of threads
            log.error("child %s can't be supervised: %s", each.name, error)
            self._inbox.put(FAILED)

    def _supervise(self, each: DeviceSupervisor) -> None:
        """Whatever goes wrong with one device, the others are supervised on."""
        code = FAILED
        try:
            code = each.run()
        except BaseException:
            log.exception("child %s isn't supervised any more", each.name)
        finally:
            self._inbox.put(code)


def _pipeline(settings: WorkerSettings) -> Pipeline:
    return Pipeline(*connect(settings.urls))
