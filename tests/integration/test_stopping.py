"""How workers are told to stop, and when they stop by themselves."""

from __future__ import annotations

import os
import signal
import sys
import threading
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import SecretStr
from rq.suspension import suspend

from tests.engines import CountingEngine
from tests.integration.test_gathering import replaced
from tests.integration.test_worker import result, words
from tests.integration.test_worker_faults import BAD, fussy
from tests.two_planes import pipeline_on
from tests.waiting import wait_until
from tests.workers import MODEL, VOCABULARY, running_worker, served, submit
from tokenrelay.shared.metrics.measures import Tally
from tokenrelay.shared.redis.batches import Pipeline
from tokenrelay.shared.redis.commands import Call
from tokenrelay.shared.redis.connections import connect
from tokenrelay.shared.settings import WorkerSettings
from tokenrelay.shared.wire import keys
from tokenrelay.worker.intake.intake import Intake
from tokenrelay.worker.supervisor.supervisor import Supervisor
from tokenrelay.worker.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from redis import Redis

    from tests.conftest import MakeRedisServer
    from tests.redis_servers import RedisServer
    from tokenrelay.shared.redis.commands import Batch, Reply
    from tokenrelay.worker.core.attempts import Claimed

NOW = datetime.now(UTC)
CHILD = (sys.executable, "-I", "-S", "-c", "import time; time.sleep(300)")


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """SIGTERM and SIGINT are handled as before, afterwards."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def worker_at(url: str, **settings: Any) -> Worker:
    chosen = WorkerSettings(redis_url=SecretStr(url), **{"heartbeat_ms": 50, **settings})
    return Worker(chosen, served(CountingEngine(vocabulary=VOCABULARY)))


def test_a_signal_that_catches_a_worker_with_its_locks_held_is_heard(redis_server: RedisServer) -> None:
    """Handlers run between two instructions of the main thread, which may be within Event.set()."""
    worker = worker_at(redis_server.url)
    worker.handle_signals()
    held = [tally._lock for tally in vars(worker.threads.figures).values() if isinstance(tally, Tally)]
    assert held
    for lock in held:
        lock.acquire()
    signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGTERM)
    for lock in held:
        lock.release()
    assert worker.threads.loop.inbox.qsize() == 2
    assert worker.work() is False
    worker.connection.close()


def test_a_signal_that_catches_a_supervisor_with_its_locks_held_is_heard(redis_server: RedisServer) -> None:
    supervisor = Supervisor(WorkerSettings(redis_url=SecretStr(redis_server.url), device="cpu"), CHILD)
    signal.signal(signal.SIGTERM, supervisor.stop)
    with supervisor._stopping._cond:  # type: ignore[attr-defined]
        signal.raise_signal(signal.SIGTERM)
    assert supervisor.run() == 0


def test_a_burst_waits_for_redis_to_come_back(make_redis_server: MakeRedisServer) -> None:
    server = make_redis_server("--appendonly", "yes", "--appendfsync", "always")
    with connect(server.url) as client:
        request_id = submit(pipeline_on(client), NOW, seed=5, max_new_tokens=20)

    worker = worker_at(server.url)
    assert worker.start()
    server.kill()
    with in_background(lambda: worker.work(burst=True)) as ended:
        errors = worker.threads.figures.redis_errors
        wait_until(lambda: any(labels == ("intake",) and number for labels, number in errors.items()), 30)
        assert not ended.is_set()
        server.start()
        assert ended.wait(30)
    with connect(server.url) as client:
        assert result(client, request_id).text == words(5, 20)
    worker.connection.close()


def test_a_worker_that_waits_for_redis_can_be_told_to_stop(make_redis_server: MakeRedisServer) -> None:
    server = make_redis_server()
    worker = worker_at(server.url)
    server.kill()
    with in_background(worker.work) as ended:
        assert not ended.is_set()
        worker.stop()
        assert ended.wait(30)
    worker.connection.close()


def test_a_signal_ends_the_wait_for_redis(make_redis_server: MakeRedisServer, caplog: pytest.LogCaptureFixture) -> None:
    server = make_redis_server()
    worker = worker_at(server.url)
    worker.handle_signals()
    server.kill()

    def interrupt() -> None:
        wait_until(lambda: "the worker couldn't register" in caplog.text, 60)
        os.kill(os.getpid(), signal.SIGTERM)

    with in_background(interrupt):
        assert worker.work() is False
    worker.connection.close()


class in_background:
    """Runs `do` in a thread while the block lasts; gives an event that is set at its end. Raises what it raised."""

    def __init__(self, do: Callable[[], object]) -> None:
        self._do = do
        self._ended = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        try:
            self._do()
        except BaseException as error:  # noqa: BLE001  raised again in the test's own thread
            self._error = error
        finally:
            self._ended.set()

    def __enter__(self) -> threading.Event:
        self._thread.start()
        return self._ended

    def __exit__(self, *_: object) -> None:
        self._thread.join()
        if self._error is not None:
            raise self._error


def test_what_is_held_is_handed_back_while_intake_still_encodes(
    redis_server: RedisServer, redis: Redis, pipeline: Pipeline
) -> None:
    """Its lease would expire meanwhile, which counts as a crash."""
    encoding, go_on = threading.Event(), threading.Event()

    def encode() -> Any:
        encoding.set()
        go_on.wait(60)
        raise ValueError

    engine = CountingEngine(vocabulary=VOCABULARY, step_delay_s=0.02)
    with running_worker(redis_server.url, engine, tokenizer=fussy(at_encode=encode), drain_timeout_s=0.0) as worker:
        try:
            held = submit(pipeline, NOW, seed=5, max_new_tokens=4000)
            wait_until(lambda: redis.xlen(keys.stream(held)) > 4)
            sick = submit(pipeline, NOW, f"w{BAD}")
            wait_until(encoding.is_set)
            worker.stop()
            wait_until(lambda: redis.hget(keys.request(held), "fence") == b"")
        finally:
            go_on.set()
    assert redis.lrange(keys.rq_queue(keys.queue(MODEL, "default")), 0, -1) == [held.encode()]
    assert not int(redis.hget(keys.request(held), "crashes") or 0)
    assert result(redis, sick).code == "internal_error"  # it was claimed once it was read, and ended


class SlowPolls(Intake):
    """A poll behind the first one begins to take once what the worker held is `handed_back`."""

    handed_back: Callable[[], bool]

    def claim(self, limit: int, *, idle: bool) -> list[Claimed]:
        if not idle:
            wait_until(self.handed_back)
        return super().claim(limit, idle=idle)


class SlowTakes(Pipeline):
    """Redis gets a take behind the first one as soon as what the worker held is `handed_back`, or after 0.2 s."""

    handed_back: Callable[[], bool]
    taken = 0

    def run(self, batch: Batch, *, atomic: bool = False) -> list[Reply]:
        if any(isinstance(item, Call) and item.script.name == "take" for item in batch):
            self.taken += 1
            if self.taken > 1:
                with suppress(AssertionError):
                    wait_until(self.handed_back, timeout_s=0.2)
        return super().run(batch, atomic=atomic)


def slow_polls(worker: Worker, handed_back: Callable[[], bool]) -> None:
    replaced(worker, SlowPolls).handed_back = handed_back


def slow_takes(worker: Worker, handed_back: Callable[[], bool]) -> None:
    taking = worker.threads.intake._taking
    taking.pipeline = slow = SlowTakes(taking.pipeline.servers.queue)
    slow.handed_back = handed_back


@pytest.mark.parametrize("slow", [slow_polls, slow_takes])
def test_a_poll_under_way_takes_nothing_of_what_is_handed_back(
    redis_server: RedisServer, redis: Redis, pipeline: Pipeline, slow: Callable[[Worker, Callable[[], bool]], None]
) -> None:
    engine = CountingEngine(vocabulary=VOCABULARY, step_delay_s=0.02)
    with running_worker(redis_server.url, engine, drain_timeout_s=0.0) as worker:
        queue = keys.rq_queue(keys.queue(MODEL, "default"))
        worker.threads.poller.gather_s = 0.0  # one take a poll
        slow(worker, lambda: bool(redis.llen(queue)))
        held = submit(pipeline, NOW, seed=5, max_new_tokens=4000)
        wait_until(lambda: redis.xlen(keys.stream(held)) > 4 and worker.threads.loop.polling.asked)
    assert redis.lrange(queue, 0, -1) == [held.encode()]
    assert redis.hget(keys.request(held), "attempt") == b"1"


def test_a_burst_ends_where_only_others_can_go_on(redis_server: RedisServer, redis: Redis, pipeline: Pipeline) -> None:
    """A request of a later wire version stays in the queue for workers that can read it."""
    other = submit(pipeline, NOW)
    redis.hset(keys.request(other), "wire", "9")
    ours = submit(pipeline, NOW, seed=5, max_new_tokens=20)
    worker = worker_at(redis_server.url)
    with in_background(lambda: worker.work(burst=True)) as ended:
        assert ended.wait(30)
    worker.connection.close()
    assert result(redis, ours).text == words(5, 20)
    assert redis.lrange(keys.rq_queue(keys.queue(MODEL, "default")), 0, -1) == [other.encode()]


def test_a_burst_of_a_suspended_queue_ends(redis_server: RedisServer, redis: Redis, pipeline: Pipeline) -> None:
    """As RQ's own worker's does."""
    submit(pipeline, NOW)
    suspend(redis, ttl=60)
    worker = worker_at(redis_server.url)
    with in_background(lambda: worker.work(burst=True)) as ended:
        assert ended.wait(30)
    worker.connection.close()
