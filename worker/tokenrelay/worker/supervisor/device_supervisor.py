"""One device's child, kept running: started, watched, its requests released when it dies, and started again."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from redis.exceptions import RedisError

from tokenrelay.shared.wire import keys
from tokenrelay.worker.maintenance.recovery import release_worker
from tokenrelay.worker.serving.served_name import served_name
from tokenrelay.worker.supervisor.child_process import ChildProcess, child_environment
from tokenrelay.worker.supervisor.exits import BAD_SETTINGS, FAILED, REDIS_UNUSABLE

if TYPE_CHECKING:
    import threading
    from pathlib import Path

    from tokenrelay.shared.redis.batches import Pipeline
    from tokenrelay.shared.settings import WorkerSettings

log = logging.getLogger(__name__)

FINAL_CODES: Final = (0, BAD_SETTINGS, REDIS_UNUSABLE)
"""Exit codes after which a child isn't restarted: it was stopped, or a restart would end the same way."""
FIRST_BACKOFF_S: Final = 0.1
LONGEST_BACKOFF_S: Final = 30.0
STEADY_S: Final = 60.0
"""A child that lived this long is no part of a crash loop."""
RELEASE_TRIES: Final = 5
RELEASE_RETRY_S: Final = 0.3


@dataclass(frozen=True, slots=True)
class Launch:
    """How a device's child is started: by `command`, under this name."""

    command: tuple[str, ...]
    name: str
    device: str
    index: int


class DeviceSupervisor:
    """Keeps a device's child running until `stopping` is set."""

    def __init__(self, launch: Launch, settings: WorkerSettings, pipeline: Pipeline, stopping: threading.Event) -> None:
        self._launch = launch
        self._settings = settings
        self._pipeline = pipeline
        self._stopping = stopping
        self._queues = keys.queues(served_name(settings))
        self._ready_file = _ReadyFile(settings.ready_file)
        self._child: ChildProcess | None = None
        self._was_ready = False
        self._starts = self._stalls = 0

    @property
    def name(self) -> str:
        return self._launch.name

    def forward_stop(self) -> None:
        """Ask the running child to stop. One that is being started is asked by this device's thread."""
        if (child := self._child) is not None:
            child.stop()

    def run(self) -> int:
        """Restart the child, with back-off, until it's stopped or a restart would end the same way; its exit code,
        0 where it was stopped by a signal of ours."""
        backoff_s = FIRST_BACKOFF_S
        while not self._stopping.is_set():
            began = time.monotonic()
            code = self._run_child()
            if self._stopping.is_set():
                return max(code, 0)
            # A first start fails for its settings; a later one may fail for lack of memory, which passes.
            if code in FINAL_CODES or not self._was_ready:
                return abs(code)
            if time.monotonic() - began > STEADY_S:
                backoff_s = FIRST_BACKOFF_S
            log.error("child %s ended with %s; restarting it in %.1f s", self.name, code, backoff_s)
            self._stopping.wait(backoff_s)
            backoff_s = min(backoff_s * 2, LONGEST_BACKOFF_S)
        return 0

    def _run_child(self) -> int:
        """Run one child from start to end; its exit code."""
        try:
            child = self._start()
        except OSError as error:  # no process or memory left: as the death of a child
            log.error("child %s can't be started: %s", self.name, error)
            return FAILED
        try:
            self._stalls += child.watch(self._settings, self._stopping, self._ready_file.touch)
        except Exception:  # such as a report that can't be read
            log.exception("child %s can't be watched: it is killed", self.name)
            child.process.kill()
        self._child = None
        code = child.wait()
        self._release()
        self._was_ready = self._was_ready or child.ready
        return code

    def _start(self) -> ChildProcess:
        """Raises OSError."""
        launch = self._launch
        history = ("--restarts", str(self._starts), "--stalls", str(self._stalls))
        self._starts += 1
        environment = child_environment(self._settings, launch.name, launch.device, launch.index)
        child = self._child = ChildProcess.start(launch.name, launch.command, history, environment)
        if self._stopping.is_set():
            child.stop()
        return child

    def _release(self) -> None:
        """Release the child's requests to other workers. Where Redis stays away, their leases expire."""
        for _ in range(RELEASE_TRIES):
            try:
                continued = release_worker(self._pipeline, self.name, self._queues, self._settings.retention_s)
            except RedisError as error:
                log.warning("child %s: its requests couldn't be released: %s", self.name, error)
                self._stopping.wait(RELEASE_RETRY_S)
            except Exception:
                log.exception("child %s: its requests can't be released; their leases expire", self.name)
                return
            else:
                if continued:
                    log.warning("child %s died: %s requests were released to other workers", self.name, continued)
                return


@dataclass(slots=True)
class _ReadyFile:
    """The file whose modification time says that the child reports, for health checks."""

    path: Path | None
    _failed: bool = False

    def touch(self) -> None:
        try:
            if self.path is not None:
                self.path.touch()
        except OSError as error:  # a health check that fails is no reason to stop a child that works
            if not self._failed:
                log.error("ready_file: %s can't be touched: %s", self.path, error)
            self._failed = True
        else:
            self._failed = False
