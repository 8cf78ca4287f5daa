"""Requests that come in a burst to an idle worker: the engine is given them together."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from redis.exceptions import ConnectionError
from rq.suspension import resume, suspend

from tests.engines import CountingEngine
from tests.waiting import wait_until
from tests.workers import VOCABULARY, running_worker, submit
from tokenrelay.shared import keys
from tokenrelay.worker.intake import Claimed, Intake

if TYPE_CHECKING:
    from collections.abc import Callable

    from redis import Redis

    from tests.redis_servers import RedisServer
    from tests.workers import ThreadedWorker
    from tokenrelay.shared.commands import Pipeline
    from tokenrelay.worker.engine import EngineRequest

NOW = datetime.now(UTC)


class Noting(CountingEngine):
    """Keeps how many requests were the worker's whenever it was given one."""

    def __init__(self) -> None:
        super().__init__(vocabulary=VOCABULARY)
        self.in_flight: Callable[[], int] = lambda: 0
        self.seen: list[int] = []

    def add(self, request: EngineRequest) -> None:
        self.seen.append(self.in_flight())
        super().add(request)


class OneAtATime(Intake):
    """Every look finds one request, as if they came one by one. `fails` lets one look fail behind the first."""

    fails = False
    found = 0

    def claim(self, limit: int, *, idle: bool) -> list[Claimed]:
        if self.fails and self.found == 1:
            self.fails = False
            raise ConnectionError("reset by peer")
        claimed = super().claim(1, idle=idle)
        self.found += len(claimed)
        return claimed


def arrange(worker: ThreadedWorker, engine: Noting, *, fails: bool = False) -> None:
    """Before the worker may take anything."""
    given = worker.loop.intake
    intake = OneAtATime(given.pipeline, given.reader, given.settings, given.worker, given.queues, given.figures)
    intake.fails = fails
    worker.loop.intake = intake
    worker.loop.gather_s = 10.0
    engine.in_flight = lambda: len(worker.loop.in_flight)


def ended(redis: Redis, request_ids: list[str]) -> bool:
    return all(redis.hget(keys.request(each), "state") == b"incomplete" for each in request_ids)


def test_a_burst_is_given_to_an_idle_engine_together(
    redis_server: RedisServer, redis: Redis, pipeline: Pipeline
) -> None:
    engine = Noting()
    suspend(redis, ttl=60)
    request_ids = [submit(pipeline, NOW, seed=seed) for seed in range(3)]
    with running_worker(redis_server.url, engine) as worker:
        arrange(worker, engine)
        resume(redis)
        wait_until(lambda: ended(redis, request_ids))
    assert engine.seen == [3, 3, 3]


def test_an_error_keeps_nothing_from_the_engine(redis_server: RedisServer, redis: Redis, pipeline: Pipeline) -> None:
    engine = Noting()
    suspend(redis, ttl=60)
    request_ids = [submit(pipeline, NOW, seed=seed) for seed in range(3)]
    with running_worker(redis_server.url, engine) as worker:
        arrange(worker, engine, fails=True)
        resume(redis)
        wait_until(lambda: ended(redis, request_ids))
    assert engine.seen[0] == 1
    assert len(engine.seen) == 3
