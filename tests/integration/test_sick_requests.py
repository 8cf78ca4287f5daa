"""A request that the engine gives up, among others in a worker: it ends alone, and says why."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from tests.engines import ALL_OPTIONS, SICK_AFTER, CountingEngine
from tests.integration.test_worker import NOW, job_failed, result, words
from tests.waiting import wait_until
from tests.workers import VOCABULARY, running_worker, submit
from tokenrelay.shared.wire.entries import State
from tokenrelay.worker.engine.contract import INVALID_LOGITS

if TYPE_CHECKING:
    import pytest
    from redis import Redis

    from tests.redis_servers import RedisServer
    from tokenrelay.shared.redis.batches import Pipeline

SICK_SEED = 13


def test_an_option_that_the_engine_lacks_fails_the_request_that_asks_for_it(
    redis_server: RedisServer, redis: Redis, pipeline: Pipeline
) -> None:
    """Rather than being answered without it."""
    with running_worker(redis_server.url, CountingEngine(options=ALL_OPTIONS - {"top_k"})):
        plain, asking = submit(pipeline, NOW, seed=1), submit(pipeline, NOW, seed=1, top_k=40)
        assert result(redis, plain).text == words(1, 8)
        failed = result(redis, asking)
    assert (failed.state, failed.code, failed.text) == (State.FAILED, "unsupported_option", "")
    assert failed.message == "this model's engine doesn't support top_k: leave it out, or give 0"


def test_a_request_with_invalid_logits_fails_alone_with_one_log_line(
    redis_server: RedisServer, redis: Redis, pipeline: Pipeline, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    engine = CountingEngine(vocabulary=VOCABULARY, step_delay_s=0.01, sick_seed=SICK_SEED)
    with running_worker(redis_server.url, engine) as worker:
        neighbours = {seed: submit(pipeline, NOW, seed=seed, max_new_tokens=30) for seed in range(5)}
        sick = submit(pipeline, NOW, seed=SICK_SEED, max_new_tokens=30)
        for seed, request_id in neighbours.items():
            assert result(redis, request_id).text == words(seed, 30)
        failed = result(redis, sick)
        assert (failed.state, failed.code, failed.text) == (
            State.FAILED,
            "invalid_logits",
            words(SICK_SEED, SICK_AFTER),
        )
        assert failed.message == INVALID_LOGITS.message
        wait_until(lambda: job_failed(redis, sick) and not worker.threads.status.held)
    lines = [record.getMessage() for record in caplog.records if sick in record.getMessage()]
    assert len(lines) == 1
    assert "invalid_logits" in lines[0]
