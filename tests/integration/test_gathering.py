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

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest
    from redis import Redis

    from tests.redis_servers import RedisServer
    from tests.workers import ThreadedWorker
    from tokenrelay.shared.commands import Pipeline
    from tokenrelay.worker.engine import EngineRequest
    from tokenrelay.worker.intake import Claimed

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


def one_at_a_time(worker: ThreadedWorker, monkeypatch: pytest.MonkeyPatch, *, fails_at: int = 0) -> None:
    """Every look finds one request, as if they came one after the other; one look fails."""
    claim, looks = worker.loop.intake.claim, []

    def look(limit: int, *, idle: bool) -> list[Claimed]:
        looks.append(limit)
        if len(looks) == fails_at:
            raise ConnectionError("reset by peer")
        return claim(1, idle=idle)

    monkeypatch.setattr(type(worker.loop.intake), "claim", lambda _, limit, *, idle: look(limit, idle=idle))


def ended(redis: Redis, request_ids: list[str]) -> bool:
    return all(redis.hget(keys.request(each), "state") == b"incomplete" for each in request_ids)


def test_a_burst_is_given_to_an_idle_engine_together(
    redis_server: RedisServer, redis: Redis, pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Noting()
    suspend(redis, ttl=60)
    request_ids = [submit(pipeline, NOW, seed=seed) for seed in range(3)]
    with running_worker(redis_server.url, engine) as worker:
        engine.in_flight = lambda: len(worker.loop.in_flight)
        one_at_a_time(worker, monkeypatch)
        resume(redis)
        wait_until(lambda: ended(redis, request_ids))
    assert engine.seen == [3, 3, 3]


def test_an_error_keeps_nothing_from_the_engine(
    redis_server: RedisServer, redis: Redis, pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Noting()
    suspend(redis, ttl=60)
    request_ids = [submit(pipeline, NOW, seed=seed) for seed in range(3)]
    with running_worker(redis_server.url, engine) as worker:
        engine.in_flight = lambda: len(worker.loop.in_flight)
        looks = len(request_ids)
        one_at_a_time(worker, monkeypatch, fails_at=looks)
        resume(redis)
        wait_until(lambda: ended(redis, request_ids))
    assert len(engine.seen) == looks
