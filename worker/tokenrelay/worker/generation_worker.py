"""GenerationWorker: what RQ sees of a worker that generates for many jobs at once.

RQ's own methods are kept where they say what is true: birth, death, registration, state, commands. RQ's dequeueing,
job execution and clean-up aren't used: they run one job at a time, import by name, and aren't fenced.
"""

from __future__ import annotations

import json
import logging
import signal
import time
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    ConnectionError,
    NoPermissionError,
    RedisError,
    ResponseError,
    TimeoutError,
)
from rq import worker_registration
from rq.command import parse_payload
from rq.defaults import DEFAULT_LOGGING_DATE_FORMAT, DEFAULT_LOGGING_FORMAT
from rq.exceptions import StopRequested
from rq.serializers import JSONSerializer
from rq.utils import utcformat
from rq.worker import BaseWorker, WorkerStatus
from rq.worker.base import DequeueStrategy

from tokenrelay.shared.errors import SettingsError
from tokenrelay.shared.redis.batches import Pipeline
from tokenrelay.shared.redis.connections import address, connect, explain, is_for_now
from tokenrelay.shared.settings import WorkerSettings
from tokenrelay.shared.store.jobs import iso
from tokenrelay.shared.store.registrations import WORKER_TTL_S, WorkerField
from tokenrelay.shared.wire import keys
from tokenrelay.shared.wire.entries import text
from tokenrelay.worker.core.intake import RQ_LEASE_S
from tokenrelay.worker.core.loop import GenerationLoop
from tokenrelay.worker.core.messages import JobsQueued, RequestEnded, Stop, StopJob
from tokenrelay.worker.metrics import Restarts, WorkerMetrics
from tokenrelay.worker.serving.model import Served, serve

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

    from redis import Redis

    from tokenrelay.shared.exposition import Exposition
    from tokenrelay.worker.engine.contract import Engine

log = logging.getLogger(__name__)

_IDENTITY = (WorkerField.HOSTNAME, WorkerField.PID, WorkerField.BIRTH)

LISTEN_AGAIN_S = 1.0
START_AGAIN_S = 0.5
_UNKNOWN = "unknown"


def _exposition(settings: WorkerSettings) -> Exposition | None:
    """/metrics, where a port is set. Raises SettingsError where it's taken."""
    if settings.metrics_port is None:
        return None
    from tokenrelay.shared.exposition import Exposition  # brings prometheus_client

    return Exposition(settings.metrics_host, settings.metrics_port)


def _outlast(do: Callable[[], object], connection: Redis, stopping: Callable[[], bool]) -> None:
    """Do what can be done again, until Redis takes it: the model is loaded, and what took minutes isn't thrown away.

    Raises StopRequested where it's told to stop before, RedisUnusable where waiting doesn't help, such as for a wrong
    password.
    """
    while True:
        if stopping():
            raise StopRequested
        try:
            do()
        except RedisError as error:
            if not _passes(error):
                raise explain(error, address(connection)) from error
            log.warning("the worker couldn't register: %s; trying again", error)
            time.sleep(START_AGAIN_S)
        else:
            return


def _passes(error: RedisError) -> bool:
    if isinstance(error, AuthenticationError | AuthorizationError | NoPermissionError):
        return False
    return isinstance(error, ConnectionError | TimeoutError) or (isinstance(error, ResponseError) and is_for_now(error))


@contextmanager
def _stopped_on_error(engine: Engine) -> Iterator[None]:
    """Its threads would keep the process from ending."""
    try:
        yield
    except BaseException:
        engine.stop()
        raise


class GenerationWorker(BaseWorker):
    """Generates for one model. Made by `tokenrelay-worker run`, or by RQ's `rq worker -w` with this class's name.

    Its queues are the served model's, whatever names it is given.
    """

    def __init__(
        self,
        queues: Any = (),
        *,
        settings: WorkerSettings | None = None,
        served: Served | None = None,
        restarts: Restarts | None = None,
        **rq: Any,
    ) -> None:
        """Raises SettingsError, also where the metrics' port is taken: before minutes of loading."""
        self.settings = settings or WorkerSettings.from_environment()
        self._exposition = _exposition(self.settings)
        served = served or serve(self.settings)
        rq["connection"] = rq.get("connection") or connect(self.settings.redis_url.get_secret_value())
        rq["name"] = rq.get("name") or self.settings.worker_name
        rq.update(serializer=JSONSerializer, log_job_description=False)
        with _stopped_on_error(served.engine):
            super().__init__(list(keys.queues(served.reader.served_model)), **rq)
        self._training = served.training
        self._defaults = json.dumps(dict(served.defaults))
        self.loop = GenerationLoop(Pipeline(self.connection), served, self.settings, self.name, self._beat)
        if self._exposition is not None:
            metrics = WorkerMetrics(self.loop, served, self.settings, restarts or Restarts())
            self._exposition.add(metrics.families)

    def _set_connection(self, connection: Redis) -> Redis:
        """The connection as it is. RQ's own makes its timeout longer than a BLPOP, and we wait for none: a worker whose
        Redis falls silent would wait for minutes."""
        return connection

    def _set_ip_address(self, connection: Redis) -> None:
        """Raises RedisUnusable. Where Redis is only away, `bootstrap` asks again: nobody watches over a worker that is
        being made."""
        try:
            super()._set_ip_address(connection)
        except RedisError as error:
            if not _passes(error):
                raise explain(error, address(connection)) from error
            self.ip_address = _UNKNOWN

    def bootstrap(
        self,
        logging_level: str | None = "INFO",
        date_format: str = DEFAULT_LOGGING_DATE_FORMAT,
        log_format: str = DEFAULT_LOGGING_FORMAT,
    ) -> None:
        """Register and listen, however long Redis is away. Raises SettingsError as `register_birth`, RedisUnusable, and
        StopRequested where it's told to stop before."""
        start = super().bootstrap

        def begin() -> None:
            if self.ip_address == _UNKNOWN:
                self._set_ip_address(self.connection)
            start(logging_level, date_format, log_format)

        _outlast(begin, self.connection, lambda: self.loop.stopping)

    def work(
        self,
        burst: bool = False,
        logging_level: str | None = None,
        date_format: str = DEFAULT_LOGGING_DATE_FORMAT,
        log_format: str = DEFAULT_LOGGING_FORMAT,
        max_jobs: int | None = None,
        max_idle_time: int | None = None,
        with_scheduler: bool = False,
        dequeue_strategy: DequeueStrategy = DequeueStrategy.DEFAULT,
    ) -> bool:
        """Generate until told to stop; with `burst`, until the queues are empty. True where a job was done.

        The signature is RQ's. There is no scheduler (it forks, and torch is loaded), and queues are served in order of
        priority. Raises EngineError when the engine died: its requests were handed over, the process is to exit;
        RedisUnusable and SettingsError where it can't register.
        """
        if with_scheduler or dequeue_strategy != DequeueStrategy.DEFAULT:
            log.warning("a generation worker has no scheduler and serves its queues in order of priority")
        with ExitStack() as ending:  # each of them, whatever the others raise
            if self._exposition is not None:
                ending.callback(self._exposition.close)
            try:
                with _stopped_on_error(self.loop.engine):
                    self.bootstrap(logging_level, date_format, log_format)
            except StopRequested:
                return False
            self._install_signal_handlers()  # type: ignore[no-untyped-call]
            ending.callback(self.teardown)
            self.loop.run(burst=burst, max_jobs=max_jobs, max_idle_s=max_idle_time)
        return self.loop.finished > 0

    def _beat(self) -> None:
        self.heartbeat()
        if self.loop.stopping and not self._stop_requested:
            self._stop_requested = True
            self._shutdown_requested_date = datetime.now(UTC)
            self.set_shutdown_requested_date()  # type: ignore[no-untyped-call]

    def serialize(self) -> dict[Any, Any]:
        """What is registered: RQ's fields, how full it is, its model's context and training, for gateways to show."""
        fields: dict[Any, Any] = {
            **super().serialize(),
            **self._load(),
            WorkerField.CONTEXT_TOKENS: self.loop.engine.context_tokens,
            WorkerField.DEFAULTS: self._defaults,
        }
        return fields if self._training is None else {**fields, WorkerField.TRAINING: self._training}

    def _load(self) -> dict[Any, Any]:
        """How many requests it may hold at a time, and how many it does: what `tokenrelay top` shows."""
        return {WorkerField.SLOTS: self.loop.in_flight.slots, WorkerField.IN_FLIGHT: len(self.loop.in_flight)}

    def heartbeat(self, timeout: int | None = None, pipeline: Any = None) -> None:
        """Keep the registration for `timeout` seconds and the state true; register again if Redis lost it."""
        connection = pipeline if pipeline is not None else self.connection.pipeline(transaction=False)
        self.last_heartbeat = datetime.now(UTC)
        fields = {
            **self._load(),
            WorkerField.STATE: self.get_state(),
            WorkerField.LAST_HEARTBEAT: iso(self.last_heartbeat),
        }
        connection.hset(self.key, mapping=fields)
        connection.expire(self.key, timeout or WORKER_TTL_S)
        connection.expire(self.executions_key, RQ_LEASE_S + 60)
        if pipeline is not None:
            return
        connection.exists(keys.RQ_SUSPENDED)
        lost, *_, suspended = connection.execute()
        if lost:
            connection.hset(self.key, mapping=self.serialize())
            worker_registration.register(self, connection)
            connection.execute()
        idle = WorkerStatus.SUSPENDED if suspended else WorkerStatus.IDLE
        state = WorkerStatus.BUSY if self.loop.in_flight else idle
        if state != self.get_state():
            self.set_state(state)

    def subscribe(self) -> None:
        """Listen to RQ's commands, to the wake-up that each enqueueing sends, and to requests that others end."""
        if self.pubsub_thread is not None:
            return  # a start that is made again listens already
        self.pubsub = self.connection.pubsub()  # type: ignore[no-untyped-call]
        handlers = {
            self.pubsub_channel_name: self.handle_payload,
            keys.QUEUED: lambda _: self.loop.post(JobsQueued()),
            keys.ENDED: self._ended,
        }
        self.pubsub.subscribe(**handlers)
        self.pubsub_thread = self.pubsub.run_in_thread(  # type: ignore[assignment]
            sleep_time=60, daemon=True, exception_handler=self._pubsub_exception_handler
        )

    def _pubsub_exception_handler(self, exc: Exception, pubsub: Any, pubsub_thread: Any) -> None:
        """Listen again once Redis is back. RQ's own ends the thread at a timeout, and with it all listening."""
        if isinstance(exc, RedisError):
            self.loop.figures.redis_errors.add("listen")
            log.warning("listening for commands: %s; trying again", exc)
        else:  # of one message
            log.error("a message couldn't be handled", exc_info=exc)
        time.sleep(LISTEN_AGAIN_S)

    def _ended(self, message: Any) -> None:
        self.loop.post(RequestEnded(message["data"].decode("utf-8", "replace")))

    def handle_payload(self, message: Any) -> None:
        """RQ's commands: shutdown, stop-job, stop-execution. A malformed one is logged and changes nothing."""
        if not message["data"]:
            return  # from `unsubscribe`
        try:
            payload = parse_payload(message)
            command, job_id = payload["command"], str(payload.get("job_id", ""))
            execution_id = str(payload.get("execution_id", ""))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            log.warning("a malformed command was ignored: %s", error)
            return
        if command == "shutdown":
            self.request_stop(signal.SIGTERM, None)
        elif command in ("stop-job", "stop-execution"):
            self.loop.post(StopJob(job_id, execution_id))
        else:
            log.warning("the command %r was ignored: a generation worker doesn't know it", command)

    def request_stop(self, signum: int, frame: FrameType | None) -> None:
        """First signal: drain. Second: hand everything back at once. Runs in the signal handler: it only posts."""
        self.loop.post(Stop(time.monotonic()))

    def run_maintenance_tasks(self) -> None:
        """RQ's clean-up fails or requeues jobs without a fence; `Maintenance` repairs RQ from the hashes instead."""

    def unsubscribe(self) -> None:
        """Stop listening; without Redis there is nobody to tell, and the thread ends with the process.

        A message to itself wakes the thread, which then ends: `PubSub.unsubscribe` connects a lost connection
        and subscribes again while it holds its own lock, and never returns (redis-py 6.2).
        """
        if self.pubsub_thread is None:
            return
        self.pubsub_thread.stop()
        try:
            self.connection.publish(self.pubsub_channel_name, b"")
        except RedisError as error:
            log.warning("the worker couldn't unsubscribe: %s", error)
        self.pubsub_thread.join(timeout=1)
        self.pubsub.close()

    def register_birth(self) -> None:
        """Register. A namesake that was killed keeps the name until its registration runs out: wait for that.

        Raises SettingsError where the namesake is alive.
        """
        try:
            super().register_birth()  # type: ignore[no-untyped-call]
        except ValueError:
            if not self._is_registered():
                self._register_after_namesake()
        self.connection.expire(self.key, WORKER_TTL_S)  # RQ gives it minutes

    def _is_registered(self) -> bool:
        """Whether the namesake is this worker itself, which heard no answer when it registered."""
        fields = (self.hostname, self.pid, self.birth_date and utcformat(self.birth_date))
        found: list[Any] = self.connection.hmget(self.key, *_IDENTITY)
        return [value and text(value) for value in found] == [str(field) for field in fields]

    def _register_after_namesake(self) -> None:
        left_s = max(self.connection.pttl(self.key), 0) / 1000
        log.warning("a worker named %s was here a moment ago: waiting %.1f s", self.name, left_s)
        time.sleep(left_s + 0.1)
        try:
            super().register_birth()  # type: ignore[no-untyped-call]
        except ValueError as error:
            raise SettingsError(f"worker_name: a worker named {self.name!r} is alive; give another name") from error

    def register_death(self) -> None:
        """Take the registration back; without Redis it runs out by itself."""
        try:
            super().register_death()  # type: ignore[no-untyped-call]
        except RedisError as error:
            log.warning("the worker couldn't sign off: %s", error)
