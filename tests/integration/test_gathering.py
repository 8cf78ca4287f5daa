"""Requests that come in a burst to an idle worker: the engine is given them together."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, TypeVar

import pytest
from redis.exceptions import ConnectionError
from rq.suspension import resume, suspend

from tests.engines import CountingEngine
from tests.waiting import wait_until
from tests.workers import VOCABULARY, running_worker, submit
from tokenrelay.shared.wire import keys
from tokenrelay.worker.intake.intake import Intake

if TYPE_CHECKING:
    from collections.abc import Callable

    from redis import Redis

    from tests.redis_servers import RedisServer
    from tokenrelay.shared.redis.batches import Pipeline
    from tokenrelay.worker.core.attempts import Claimed
    from tokenrelay.worker.engine.contract import EngineRequest
    from tokenrelay.worker.worker import Worker

NOW = datetime.now(UTC)
NEVER_S = 60.0
Kind = TypeVar("Kind", bound=Intake)


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

    asked = False
    fails = False
    found = 0

    def claim(self, limit: int, *, idle: bool) -> list[Claimed]:
        self.asked = True
        if self.fails and self.found == 1:
            self.fails = False
            raise ConnectionError("reset by peer")
        claimed = super().claim(1, idle=idle)
        self.found += len(claimed)
        return claimed


class LastComesLate(Intake):
    """One more is enqueued when a look behind the first ones has found nothing."""

    submit_last: Callable[[], object] | None = None

    def claim(self, limit: int, *, idle: bool) -> list[Claimed]:
        claimed = super().claim(limit, idle=idle)
        # Not by counting here: the intake before this one may have been at it.
        if not claimed and not idle and self.submit_last is not None:
            self.submit_last()
            self.submit_last = None
        return claimed


def replaced(worker: Worker, kind: type[Kind]) -> Kind:
    """Have it claim in this kind's way, with all that the intake before it has taken."""
    intake = kind.__new__(kind)
    intake.__dict__.update(worker.threads.intake.__dict__)
    worker.threads.poller.intake = worker.threads.intake = intake
    return intake


def arrange(worker: Worker, engine: Noting, *, fails: bool = False) -> None:
    """Before the worker may take anything; the intake before it may still be at a poll."""
    intake = replaced(worker, OneAtATime)
    intake.fails = fails
    worker.threads.poller.gather_s = 10.0
    engine.in_flight = lambda: len(worker.threads.status.held)
    wait_until(lambda: intake.asked)


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


def test_the_next_of_a_burst_is_waited_for(redis_server: RedisServer, redis: Redis, pipeline: Pipeline) -> None:
    engine = Noting()
    suspend(redis, ttl=60)
    request_ids = [submit(pipeline, NOW, seed=seed) for seed in range(2)]
    with running_worker(redis_server.url, engine) as worker:
        arrange(worker, engine)
        worker.threads.poller.burst_gap_s = 10.0
        replaced(worker, LastComesLate).submit_last = lambda: request_ids.append(submit(pipeline, NOW, seed=2))
        worker.threads.poller.gather_s = 1.5
        resume(redis)
        wait_until(lambda: len(request_ids) == 3 and ended(redis, request_ids))
    assert engine.seen == [3, 3, 3]


@pytest.mark.parametrize(("requests", "slots"), [(1, 32), (2, 2), (3, 2)], ids=["one alone", "no slot left", "more"])
def test_nobody_waits_for_who_cant_join(
    redis_server: RedisServer, redis: Redis, pipeline: Pipeline, requests: int, slots: int
) -> None:
    engine = Noting()
    suspend(redis, ttl=60)
    request_ids = [submit(pipeline, NOW, seed=seed) for seed in range(requests)]
    with running_worker(redis_server.url, engine, slots=slots) as worker:
        arrange(worker, engine)
        worker.threads.poller.gather_s = worker.threads.poller.burst_gap_s = NEVER_S
        resume(redis)
        wait_until(lambda: ended(redis, request_ids))


def test_a_worker_that_stops_waits_for_nobody(redis_server: RedisServer, redis: Redis, pipeline: Pipeline) -> None:
    engine = Noting()
    suspend(redis, ttl=60)
    request_ids = [submit(pipeline, NOW, seed=seed) for seed in range(2)]
    with running_worker(redis_server.url, engine, drain_timeout_s=20.0) as worker:
        arrange(worker, engine)
        worker.threads.poller.gather_s = worker.threads.poller.burst_gap_s = NEVER_S
        resume(redis)
        wait_until(lambda: len(worker.threads.status.held) == 2)
        worker.stop()
        wait_until(lambda: ended(redis, request_ids))
