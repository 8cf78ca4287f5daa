"""The worker: its connections, engine, loop, RQ's mirror, maintenance, metrics and signals, put together.

The composition root: everything else is given what it needs, and imports nothing from here.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import time
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from uuid import uuid4

from tokenrelay.shared.options import CAPABILITIES, WIRE
from tokenrelay.shared.redis.batches import Pipeline
from tokenrelay.shared.redis.servers import connect, servers_of
from tokenrelay.shared.store.registrar import WorkerDescription, WorkerStatus
from tokenrelay.shared.wire import keys
from tokenrelay.worker.core.messages import JobsQueued, RequestEnded, Stop
from tokenrelay.worker.core.stopping import Limits
from tokenrelay.worker.listener import Listener
from tokenrelay.worker.maintenance.maintainer import Maintenance
from tokenrelay.worker.metrics import Restarts, WorkerMetrics
from tokenrelay.worker.rq_mirror.commands import parse_command
from tokenrelay.worker.rq_mirror.registration import WorkerRegistration
from tokenrelay.worker.serving.model import Served, serve
from tokenrelay.worker.starting import retry
from tokenrelay.worker.threads import GenerationThreads

if TYPE_CHECKING:
    from collections.abc import Iterator

    from redis import Redis

    from tokenrelay.shared.metrics.exposition import Exposition
    from tokenrelay.shared.settings import WorkerSettings
    from tokenrelay.worker.engine.contract import Engine

log = logging.getLogger(__name__)


class Worker:
    """Generates for one model until it's stopped.

    `served` and `connection` are made from the settings where they aren't given. A `connection` is for queues and
    streams alike, whatever the settings' URLs say; with `streams_connection` that one is for the streams.
    """

    def __init__(
        self,
        settings: WorkerSettings,
        served: Served | None = None,
        *,
        connection: Redis | None = None,
        streams_connection: Redis | None = None,
        restarts: Restarts | None = None,
    ) -> None:
        """Raises SettingsError, also where the metrics port is in use: before minutes of loading."""
        self.settings = settings
        self.name = settings.worker_name or uuid4().hex
        servers = self.servers = servers_of(connection, streams_connection) or connect(settings.urls)
        self.connection = servers.queue
        self._exposition = _exposition(settings)
        served = served or serve(settings)
        pipeline, queues = Pipeline(*servers), keys.queues(served.reader.served_model)
        self.threads = threads = GenerationThreads(pipeline, served, settings, self.name)
        jobs = {keys.rq_commands(self.name): parse_command, keys.QUEUED: lambda _: JobsQueued()}
        ends = {keys.ENDED: lambda job_id: RequestEnded(job_id.decode("utf-8", "replace"))}
        self.listeners = [Listener(servers, each, threads.post, threads.figures) for each in (jobs, ends)]
        self.registration = WorkerRegistration(pipeline, _describe(self.name, queues, served), self._status)
        self.maintenance = Maintenance(pipeline, queues, lambda: threads.status.held, settings, threads.figures)
        self._started = self._stop_requested = False
        if self._exposition is not None:
            self._exposition.add(WorkerMetrics(threads, served, settings, restarts or Restarts()).families)

    def handle_signals(self) -> None:
        """Stop at SIGTERM and SIGINT. Only the process's main thread can install handlers."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self.stop())

    def stop(self) -> None:
        """First call: drain. Second: hand everything back at once. Safe in a signal handler: it only posts."""
        self._stop_requested = True
        self.threads.post(Stop(time.monotonic()))

    def hand_back(self) -> None:
        """Stop without a drain: there is no supervisor left to restart a worker that hangs."""
        self.stop()
        self.stop()

    def start(self) -> bool:
        """Listen and register, waiting for Redis where it can't be reached; False where it was stopped before.

        A no-op once it has started. Raises RedisUnusable, and SettingsError where the name is taken.
        """

        def attempt() -> None:
            for listener in self.listeners:  # first: whoever sees the registration may send commands
                listener.start()
            self.registration.register()

        if not self._started:
            with _stopped_on_error(self.threads.engine):
                self._started = retry(attempt, self.servers.address, lambda: self._stop_requested)
            if self._started:
                log.info("worker %s listens on %s", self.name, ", ".join(self.maintenance.queues))
        return self._started

    def work(self, *, burst: bool = False, max_jobs: int | None = None, max_idle_s: float | None = None) -> bool:
        """Generate until it's stopped, until the queues are empty (`burst`), or until a limit of jobs or idle time.

        True where a request ended here. Raises EngineError when the engine died: its requests were handed over, and the
        process is to exit; RedisUnusable and SettingsError as `start`.
        """
        threads, maintenance, beat_s = self.threads, self.maintenance, self.settings.heartbeat_ms / 1000
        with ExitStack() as ending:  # each step is taken, whatever the others raise
            if self._exposition is not None:
                ending.callback(self._exposition.close)
            for listener in self.listeners:
                ending.callback(listener.stop)
            if not self.start():
                threads.engine.stop()
                return False
            ending.callback(self.registration.remove)
            ending.callback(maintenance.leave)
            ending.enter_context(threads.periodic("registration", self.registration.beat, lambda: beat_s))
            ending.enter_context(threads.periodic("maintenance", maintenance.run, lambda: maintenance.due_in_s))
            threads.run(Limits(burst, max_jobs, max_idle_s))
        return threads.status.finished > 0

    def _status(self) -> WorkerStatus:
        status = self.threads.status
        return WorkerStatus(status.slots, len(status.held), self._stop_requested or status.draining)


def _describe(name: str, queues: tuple[str, ...], served: Served) -> WorkerDescription:
    return WorkerDescription(
        name=name,
        queues=queues,
        hostname=socket.gethostname(),
        pid=os.getpid(),
        birth=datetime.now(UTC),
        context_tokens=served.engine.capabilities.context_tokens,
        defaults=json.dumps(dict(served.defaults)),
        training=served.training,
        wire=WIRE,
        capabilities=tuple(
            sorted(CAPABILITIES[name] for name in CAPABILITIES.keys() & served.reader.capabilities.options)
        ),
    )


def _exposition(settings: WorkerSettings) -> Exposition | None:
    """/metrics, where a port is set. Raises SettingsError where it's in use."""
    if settings.metrics_port is None:
        return None
    from tokenrelay.shared.metrics.exposition import Exposition  # imports prometheus_client

    return Exposition(settings.metrics_host, settings.metrics_port)


@contextmanager
def _stopped_on_error(engine: Engine) -> Iterator[None]:
    """Its threads would keep the process from ending."""
    try:
        yield
    except BaseException:
        engine.stop()
        raise
