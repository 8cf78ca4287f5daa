"""The worker that maintains the queues hangs or fails: others take the maintenance over, and its requests."""

from __future__ import annotations

import threading
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from tests.engines import CountingEngine
from tests.integration.test_worker import result, state, words
from tests.integration.test_worker_faults import BAD, SICK, fussy
from tests.waiting import wait_until
from tests.workers import MODEL, VOCABULARY, running_worker, submit
from tokenrelay.shared.errors import EngineError
from tokenrelay.shared.redis.batches import Pipeline
from tokenrelay.shared.wire import keys

if TYPE_CHECKING:
    from redis import Redis

    from tests.redis_servers import RedisServer
    from tokenrelay.shared.redis.commands import Batch
    from tokenrelay.worker.engine.contract import EngineOutput

NOW = datetime.now(UTC)
LOCK = keys.maintainer(keys.queues(MODEL)[0])


class HangingEngine(CountingEngine):
    """Takes its first request in and never steps again, as a kernel that doesn't return."""

    def step(self) -> list[EngineOutput]:
        threading.Event().wait(0.05)
        return []


class FailingPipeline(Pipeline):
    """Raises what no retry mends."""

    def run(self, batch: Batch, *, atomic: bool = False) -> list[Any]:
        raise ZeroDivisionError


def test_a_worker_whose_maintenance_fails_hands_its_requests_over(
    redis_server: RedisServer, redis: Redis, pipeline: Pipeline
) -> None:
    engine = CountingEngine(vocabulary=VOCABULARY, step_delay_s=0.05)
    with pytest.raises(ZeroDivisionError), running_worker(redis_server.url, engine) as worker:  # noqa: PT012
        request_id = submit(pipeline, NOW, seed=3, max_new_tokens=200)
        wait_until(lambda: redis.xlen(keys.stream(request_id)) >= 4)
        worker.maintenance.pipeline = FailingPipeline(redis)
        wait_until(lambda: not redis.sismember(keys.RQ_WORKERS, keys.rq_worker(worker.name)))
        with running_worker(redis_server.url):
            got = result(redis, request_id)
        assert (got.text, got.attempts) == (words(3, 200), 2)


@pytest.mark.slow
def test_a_worker_without_a_supervisor_gives_up_an_engine_that_hangs(
    redis_server: RedisServer, redis: Redis, pipeline: Pipeline
) -> None:
    """Its leases end with it, and others go on with what it held."""
    hanging = running_worker(redis_server.url, HangingEngine(vocabulary=VOCABULARY), stall_timeout_s=1.0)
    with pytest.raises(EngineError, match="no progress"), hanging as worker:  # noqa: PT012
        request_id = submit(pipeline, NOW, seed=3, max_new_tokens=10)
        wait_until(lambda: state(redis, request_id) == "in_progress")
        with running_worker(redis_server.url):
            got = result(redis, request_id)
        assert (got.text, got.attempts) == (words(3, 10), 2)
        wait_until(lambda: not redis.sismember(keys.RQ_WORKERS, keys.rq_worker(worker.name)))


def test_a_maintainer_whose_loop_hangs_keeps_its_requests_from_nobody(
    redis_server: RedisServer, redis: Redis, pipeline: Pipeline
) -> None:
    hanging, go_on = threading.Event(), threading.Event()

    def hang() -> Any:
        hanging.set()
        go_on.wait(60)
        return f"w{BAD}"

    chosen: dict[str, Any] = {"lease_ms": 1000, "suspicion_ms": 100, "drain_timeout_s": 0}
    engine = CountingEngine(vocabulary=VOCABULARY, step_delay_s=0.01)
    with running_worker(redis_server.url, engine, tokenizer=fussy(at_decode=hang), **chosen):
        wait_until(lambda: redis.exists(LOCK))
        sick = submit(pipeline, NOW, seed=SICK, max_new_tokens=40)
        try:
            wait_until(hanging.is_set)
            with running_worker(redis_server.url, **chosen):
                wait_until(lambda: state(redis, sick) == "incomplete", 30)
        finally:
            go_on.set()
    got = result(redis, sick)
    assert (got.text, got.attempts) == (words(SICK, 40), 2)
