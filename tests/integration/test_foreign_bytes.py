"""Malformed data in any key that we read: one request fails alone, and everything else continues.

Hypothesis chooses data and key. Readers raise a documented error or return an answer; workers and
gateways serve the next request; commands end with one of their exit codes and no traceback.
"""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import pytest
from hypothesis import given
from rq.suspension import resume, suspend
from typer.testing import CliRunner

from tests.engines import CountingEngine
from tests.scribbles import KNOWN, MANY, Scribble, erase, scribble, scribbles
from tests.waiting import wait_until
from tests.workers import VOCABULARY, running_worker, submit
from tokenrelay.cli.commands import app
from tokenrelay.cli.terminal.output import Exit
from tokenrelay.producer import Consumer, Producer
from tokenrelay.producer._core.drivers import Driver
from tokenrelay.producer.trace import traced
from tokenrelay.shared.errors import TokenRelayError
from tokenrelay.shared.wire import keys
from tokenrelay.shared.wire.entries import State

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from redis import Redis

    from tests.redis_servers import RedisServer
    from tokenrelay.shared.redis.batches import Pipeline
    from tokenrelay.worker.worker import Worker

# A scribble may take the worker out of the sets in which a producer looks for it.
pytestmark = pytest.mark.filterwarnings("ignore::tokenrelay.producer.NoWorkerWarning")
NOW: Final = datetime.now(UTC)
COMMANDS: Final = (
    ("status",),
    ("status", "ID"),
    ("list",),
    ("list", "--json"),
    ("top", "--once"),
    ("trace", "ID"),
    ("cancel", "ID"),
    ("follow", "ID"),
)


@pytest.fixture
def worker(redis_server: RedisServer, redis: Redis) -> Iterator[Worker]:
    """Shared by all examples, so that a lasting effect of one would fail the next."""
    engine = CountingEngine(vocabulary=VOCABULARY)
    with running_worker(redis_server.url, engine, suspicion_ms=100) as worker:
        yield worker
    redis.flushall()


@pytest.fixture
def producer(redis_server: RedisServer) -> Iterator[Producer]:
    with Producer(url=redis_server.url) as producer:
        yield producer


def answered(producer: Producer, request_id: str) -> State:
    return producer.get(request_id).result(timeout_s=30).state


def check_the_worker(
    redis: Redis, pipeline: Pipeline, producer: Producer, worker: Worker, chosen: list[Scribble]
) -> None:
    suspend(redis, ttl=60)
    before, waiting, after = (submit(pipeline, NOW, deadline_s=60) for _ in range(3))
    scribble(redis, waiting, chosen)
    resume(redis)
    assert answered(producer, before) is State.INCOMPLETE
    assert answered(producer, after) is State.INCOMPLETE
    running = submit(pipeline, NOW, max_new_tokens=2000, deadline_s=60)
    wait_until(lambda: redis.hget(keys.request(running), "state") != b"queued")
    scribble(redis, running, chosen)
    assert answered(producer, submit(pipeline, NOW, deadline_s=60)) is State.INCOMPLETE
    for request_id in (waiting, running):
        only_documented(lambda request_id=request_id: producer.get(request_id).result(timeout_s=0.01))  # type: ignore[misc]
    erase(redis, waiting, running)
    wait_until(lambda: not worker.threads.status.held)


def only_documented(read: Callable[[], object]) -> None:
    with suppress(TokenRelayError):
        read()


def test_a_worker_serves_the_others(
    redis: Redis, pipeline: Pipeline, producer: Producer, worker: Worker, caplog: pytest.LogCaptureFixture
) -> None:
    """Each of the known ones on a request of its own, in one queue with healthy ones. A log file takes all lines."""
    suspend(redis, ttl=60)
    healthy, sick = [submit(pipeline, NOW)], []
    for known in KNOWN:
        sick.append(submit(pipeline, NOW, deadline_s=60))
        scribble(redis, sick[-1], [known])
        healthy.append(submit(pipeline, NOW))
    resume(redis)
    for request_id in healthy:
        assert answered(producer, request_id) is State.INCOMPLETE
    for request_id in sick:
        only_documented(lambda request_id=request_id: producer.get(request_id).result(timeout_s=0.01))  # type: ignore[misc]
    assert answered(producer, submit(pipeline, NOW)) is State.INCOMPLETE
    assert worker.threads.status.finished > len(healthy)
    assert caplog.text.encode()
    erase(redis, *sick)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@MANY
@given(chosen=scribbles)
def test_a_worker_serves_the_others_whatever_is_written(
    redis: Redis, pipeline: Pipeline, producer: Producer, worker: Worker, chosen: list[Scribble]
) -> None:
    check_the_worker(redis, pipeline, producer, worker, chosen)


def check_the_readers(redis_server: RedisServer, redis: Redis, pipeline: Pipeline, chosen: list[Scribble]) -> None:
    sick = submit(pipeline, NOW, deadline_s=1)
    with Consumer(url=redis_server.url) as consumer, Producer(url=redis_server.url) as producer:
        handles = consumer.get(sick), producer.get(sick)
        scribble(redis, sick, chosen)
        for handle in handles:
            only_documented(handle.status)
            only_documented(lambda handle=handle: handle.result(timeout_s=0.01))  # type: ignore[misc]
        only_documented(lambda: Driver(redis).run(traced(sick)))
        check_the_commands(redis_server, sick)
        only_documented(handles[1].cancel)
        for handle in handles:
            only_documented(lambda handle=handle: handle.result(timeout_s=0.01))  # type: ignore[misc]
    erase(redis, sick)


def check_the_commands(redis_server: RedisServer, request_id: str) -> None:
    for command in COMMANDS:
        arguments = [request_id if word == "ID" else word for word in command]
        done = CliRunner().invoke(app, arguments, env={"TOKENRELAY_REDIS_URL": redis_server.url})
        assert done.exception is None or isinstance(done.exception, SystemExit), (command, done.exception)
        assert done.exit_code in list(Exit), (command, done.output)


@pytest.mark.parametrize("known", KNOWN, ids=str)
def test_readers_and_commands_say_what_is_wrong(
    redis_server: RedisServer, redis: Redis, pipeline: Pipeline, known: Scribble
) -> None:
    check_the_readers(redis_server, redis, pipeline, [known])


@pytest.mark.slow
@pytest.mark.timeout(1200)
@MANY
@given(chosen=scribbles)
def test_readers_and_commands_say_what_is_wrong_whatever_is_written(
    redis_server: RedisServer, redis: Redis, pipeline: Pipeline, chosen: list[Scribble]
) -> None:
    check_the_readers(redis_server, redis, pipeline, chosen)
    redis.flushall()
