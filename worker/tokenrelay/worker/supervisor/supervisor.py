"""The supervisor: one engine child per device, kept alive. Loads no torch, so nothing an engine does can take it down.

A child that dies has its leases released at once and is started again, more slowly each time; one that hangs is
killed, which is the same. Knows nothing of requests beyond releasing a dead child's.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass
from queue import SimpleQueue
from typing import TYPE_CHECKING, Final
from uuid import uuid4

from redis.exceptions import RedisError

from tokenrelay.shared.errors import SettingsError
from tokenrelay.shared.redis.batches import Pipeline
from tokenrelay.shared.redis.servers import connect
from tokenrelay.shared.settings import PREFIX
from tokenrelay.shared.wire import keys
from tokenrelay.worker.core.progress import ReportReader
from tokenrelay.worker.core.recovery import release_worker
from tokenrelay.worker.serving.served_name import served_name
from tokenrelay.worker.supervisor.exits import BAD_SETTINGS, FAILED, REDIS_UNUSABLE

if TYPE_CHECKING:
    from types import FrameType

    from tokenrelay.shared.settings import WorkerSettings

log = logging.getLogger(__name__)

FINAL_CODES: Final = (0, BAD_SETTINGS, REDIS_UNUSABLE)
"""Exit codes after which a child isn't started again: it stopped as told, or another start would say the same."""
FIRST_PAUSE_S: Final = 0.1
LONGEST_PAUSE_S: Final = 30.0
STEADY_S: Final = 60.0
"""A child that lived this long is no part of a crash loop."""
KILL_AFTER_DRAIN_S: Final = 10.0
RELEASE_TRIES: Final = 5
RELEASE_PAUSE_S: Final = 0.3
_MAX_PORT: Final = 65_535
_STOP: Final = ""


@dataclass(slots=True)
class Child:
    """A running child, its pipes and since when it made no progress."""

    name: str
    process: subprocess.Popen[bytes]
    reports: ReportReader
    tether: int
    started: float
    ready: bool = False

    def close(self) -> None:
        self.reports.close()
        os.close(self.tether)


class Supervisor:
    """Keeps one child per device until it's told to stop. `command` starts a child; its pipes are added to it."""

    def __init__(self, settings: WorkerSettings, command: tuple[str, ...] | None = None) -> None:
        self._settings = settings
        self._command = command or (sys.executable, "-m", "tokenrelay.worker.supervisor.child")
        self._name = settings.worker_name or uuid4().hex[:12]
        self._queues = keys.queues(served_name(settings))
        self._pipeline = Pipeline(*connect(settings.urls))
        self._stop = threading.Event()
        self._posted: SimpleQueue[str] = SimpleQueue()
        """What the main thread is to hear: signals, and the ends of the threads that keep the children."""
        self._unready = False
        self._children: dict[str, Child] = {}
        self._exit_codes: list[int] = []
        self._starts: Counter[str] = Counter()
        self._stalls: Counter[str] = Counter()

    def run(self) -> int:
        """Supervise until every child has stopped; the worst exit code. Raises SettingsError before any is started."""
        found = devices(self._settings)
        check_ports(self._settings, len(found))
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self.stop)
        kept = sum(self._kept(device, index) for index, device in enumerate(found))
        while kept:
            if self._posted.get() == _STOP:
                self._pass_on()
            else:
                kept -= 1
        return max(self._exit_codes, default=0 if self._stop.is_set() else FAILED)

    def stop(self, signum: int = signal.SIGTERM, frame: FrameType | None = None) -> None:
        """Pass a signal on: the first drains the children, the second makes them hand back at once.

        As a signal's handler it only posts: the thread that is interrupted may hold any lock, an Event's too.
        """
        self._posted.put(_STOP)

    def _pass_on(self) -> None:
        self._stop.set()
        for child in list(self._children.values()):
            child.process.send_signal(signal.SIGTERM)

    def _kept(self, device: str, index: int) -> bool:
        """Whether the thread that keeps a device's child could be started."""
        try:
            threading.Thread(target=self._keep, args=(device, index), name=device).start()
        except RuntimeError as error:  # out of threads
            log.error("the child for %s can't be kept: %s", device, error)
            self._exit_codes.append(FAILED)
            return False
        return True

    def _keep(self, device: str, index: int) -> None:
        """Keep a device's child. Whatever goes wrong with it, the others are kept and the process ends with them."""
        try:
            self._start_again_and_again(device, index)
        except BaseException:
            log.exception("the child for %s isn't kept any more", device)
            self._exit_codes.append(FAILED)
        finally:
            self._posted.put(device)

    def _start_again_and_again(self, device: str, index: int) -> None:
        """Until it's told to stop or the child says that there is no point."""
        pause_s, was_ready = FIRST_PAUSE_S, False
        while not self._stop.is_set():
            began = time.monotonic()
            try:
                child = self._start(device, index)
            except OSError as error:  # no process, no memory: what a death is, a moment earlier
                log.error("a child for %s can't be started: %s", device, error)
                code = FAILED
            else:
                code = self._outlived(child)
                self._release(child)
                was_ready = was_ready or child.ready
            # A first start that fails says what to change; later ones may have met a machine short of memory.
            if self._stop.is_set() or code in FINAL_CODES or not was_ready:
                self._exit_codes.append(max(code, 0) if self._stop.is_set() else abs(code))
                return
            if time.monotonic() - began > STEADY_S:
                pause_s = FIRST_PAUSE_S
            log.error("the child for %s ended with %s; it is started again in %.1f s", device, code, pause_s)
            self._stop.wait(pause_s)
            pause_s = min(pause_s * 2, LONGEST_PAUSE_S)

    def _start(self, device: str, index: int) -> Child:
        """Raises OSError."""
        report_read, report_write = os.pipe()
        tether_read, tether_write = os.pipe()
        name = f"{self._name}.{index}"
        history = ("--restarts", str(self._starts[name]), "--stalls", str(self._stalls[name]))
        self._starts[name] += 1
        try:
            process = subprocess.Popen(
                [*self._command, "--report-fd", str(report_write), "--tether-fd", str(tether_read), *history],
                env=child_environment(self._settings, name, device, index),
                pass_fds=(report_write, tether_read),
                start_new_session=True,  # a terminal's Ctrl-C is the supervisor's to pass on
            )
        except OSError:
            os.close(report_read)
            os.close(tether_write)
            raise
        finally:
            os.close(report_write)
            os.close(tether_read)
        child = Child(name, process, ReportReader(report_read), tether_write, time.monotonic())
        self._children[name] = child
        if self._stop.is_set():
            process.send_signal(signal.SIGTERM)
        return child

    def _outlived(self, child: Child) -> int:
        """The exit code of a child, once it has ended; it is killed where it makes no progress or can't be watched."""
        try:
            self._stalls[child.name] += self._watch(child)
        except Exception:  # such as a report that can't be read
            log.exception("child %s can't be watched: it is killed", child.name)
            child.process.kill()
        self._children.pop(child.name, None)
        # The pipe ends with the process, or a moment before it.
        try:
            code = child.process.wait(timeout=KILL_AFTER_DRAIN_S)
        except subprocess.TimeoutExpired:
            child.process.kill()
            code = child.process.wait()
        child.close()
        return code

    def _watch(self, child: Child) -> bool:
        """Returns once the child ends, or was killed: whether because it made no progress."""
        moved_at, progress, stalled = time.monotonic(), -1, False
        stop_by = float("inf")
        while (reports := child.reports.read(0.5)) is not None:
            now = time.monotonic()
            if not reports and child.process.poll() is not None:
                break  # somebody it started holds the pipe open
            if reports:
                self._say_ready()
            for report in reports:
                child.ready = True
                if report.progress != progress or report.in_flight == 0:
                    moved_at, progress = now, report.progress
            if self._stop.is_set():
                stop_by = min(stop_by, now + self._settings.drain_timeout_s + KILL_AFTER_DRAIN_S)
            is_late = now > stop_by or (child.ready and now - moved_at > self._settings.stall_timeout_s)
            if is_late and not stalled:
                log.error("child %s makes no progress: it is killed", child.name)
                child.process.kill()
                stalled = True
        return stalled

    def _say_ready(self) -> None:
        try:
            if self._settings.ready_file is not None:
                self._settings.ready_file.touch()
        except OSError as error:  # a health check that fails is no reason to stop a child that works
            if not self._unready:
                log.error("ready_file: %s can't be touched: %s", self._settings.ready_file, error)
            self._unready = True
        else:
            self._unready = False

    def _release(self, child: Child) -> None:
        """Give the child's requests to the living. Where Redis stays away, its leases run out by themselves."""
        for _ in range(RELEASE_TRIES):
            try:
                continued = release_worker(self._pipeline, child.name, self._queues, self._settings.retention_s)
            except RedisError as error:
                log.warning("child %s: its requests couldn't be released: %s", child.name, error)
                self._stop.wait(RELEASE_PAUSE_S)
            except Exception:
                log.exception("child %s: its requests can't be released; their leases run out", child.name)
                return
            else:
                if continued:
                    log.warning("child %s died: %s requests go on elsewhere", child.name, continued)
                return


def devices(settings: WorkerSettings) -> list[str]:
    """One device a child: all NVIDIA GPUs that answer where the setting is `auto`, else the one that it names."""
    if settings.device != "auto":
        return [settings.device]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        count = len([part for part in visible.split(",") if part.strip() not in ("", "-1")])
    elif shutil.which("nvidia-smi"):
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False, timeout=30)
        count = listed.stdout.count("GPU ") if listed.returncode == 0 else 0
    else:
        count = 0
    return [f"cuda:{index}" for index in range(count)] or ["auto"]


def check_ports(settings: WorkerSettings, children: int) -> None:
    """Raises SettingsError where there isn't a metrics port for each child."""
    last = (settings.metrics_port or 0) + children - 1
    if settings.metrics_port is not None and last > _MAX_PORT:
        told = f"{children} engines take the ports {settings.metrics_port} to {last}, and {_MAX_PORT} is the last"
        raise SettingsError(f"{PREFIX}METRICS_PORT: {told}")


def child_environment(settings: WorkerSettings, name: str, device: str, index: int) -> dict[str, str]:
    """The environment of a child: ours, with every setting spelled out. Secrets never stand on a command line."""
    environment = dict(os.environ)
    port = settings.metrics_port and settings.metrics_port + index
    for field, value in settings.model_copy(update={"worker_name": name, "device": device, "metrics_port": port}):
        if value is not None:
            shown = value.get_secret_value() if hasattr(value, "get_secret_value") else value
            environment[PREFIX + field.upper()] = str(shown)
    return environment
