"""A child as its supervisor sees it: a process, the pipe by which it reports its progress, and its tether."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

from tokenrelay.shared.settings import PREFIX
from tokenrelay.worker.supervisor.pipes import ReportReader

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Mapping, Sequence

    from tokenrelay.shared.settings import WorkerSettings

log = logging.getLogger(__name__)

KILL_AFTER_DRAIN_S: Final = 10.0
"""How long a child may take to end beyond its drain timeout."""
_READ_S: Final = 0.5


@dataclass(slots=True)
class ChildProcess:
    """A running child and the supervisor's ends of its pipes."""

    name: str
    process: subprocess.Popen[bytes]
    reports: ReportReader
    tether: int
    ready: bool = False
    """Whether it has reported: its model is loaded."""

    @classmethod
    def start(cls, name: str, command: Sequence[str], arguments: Sequence[str], environment: Mapping[str, str]) -> Self:
        """Start `command` with its ends of the pipes, then the other `arguments`. Raises OSError."""
        report_read, report_write = os.pipe()
        tether_read, tether_write = os.pipe()
        try:
            process = subprocess.Popen(
                [*command, "--report-fd", str(report_write), "--tether-fd", str(tether_read), *arguments],
                env=environment,
                pass_fds=(report_write, tether_read),
                start_new_session=True,  # a terminal's Ctrl-C is the supervisor's to forward
            )
        except OSError:
            os.close(report_read)
            os.close(tether_write)
            raise
        finally:
            os.close(report_write)
            os.close(tether_read)
        return cls(name, process, ReportReader(report_read), tether_write)

    def stop(self) -> None:
        """Ask it to stop: the first time it drains, the second time it hands back at once."""
        self.process.send_signal(signal.SIGTERM)

    def watch(self, settings: WorkerSettings, stopping: threading.Event, on_report: Callable[[], object]) -> bool:
        """Returns once the child has ended. One that makes no progress, or doesn't end within its drain timeout, is
        killed: whether it was."""
        moved_at, progress, killed = time.monotonic(), -1, False
        stop_by = float("inf")
        while (reports := self.reports.read(_READ_S)) is not None:
            now = time.monotonic()
            if not reports and self.process.poll() is not None:
                break  # a process that it started holds the pipe open
            if reports:
                self.ready = True
                on_report()
            for report in reports:
                if report.progress != progress or report.in_flight == 0:
                    moved_at, progress = now, report.progress
            if stopping.is_set():
                stop_by = min(stop_by, now + settings.drain_timeout_s + KILL_AFTER_DRAIN_S)
            is_late = now > stop_by or (self.ready and now - moved_at > settings.stall_timeout_s)
            if is_late and not killed:
                log.error("child %s makes no progress: it is killed", self.name)
                self.process.kill()
                killed = True
        return killed

    def wait(self) -> int:
        """Its exit code, once the process has ended: with its pipe, or a moment later. Closes the pipes."""
        try:
            code = self.process.wait(timeout=KILL_AFTER_DRAIN_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        self.reports.close()
        os.close(self.tether)
        return code


def child_environment(settings: WorkerSettings, name: str, device: str, index: int) -> dict[str, str]:
    """The environment of a child: ours, with every setting spelled out. Secrets never stand on a command line."""
    environment = dict(os.environ)
    port = settings.metrics_port and settings.metrics_port + index
    for field, value in settings.model_copy(update={"worker_name": name, "device": device, "metrics_port": port}):
        if value is not None:
            shown = value.get_secret_value() if hasattr(value, "get_secret_value") else value
            environment[PREFIX + field.upper()] = str(shown)
    return environment
