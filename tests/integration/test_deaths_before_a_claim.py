"""A request that takes its worker down before the worker could claim it: while its prompt is encoded."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from tests.counting_child import HANGING_TEXT, POISON_TEXT
from tests.integration.scripts.queue_plane import DEFAULT, enqueue, execution_of, requeue, take
from tests.integration.test_supervisor import ready, supervised
from tests.integration.test_worker import result, state, words
from tests.streams import REQUEST_ID
from tests.token_plane import reply_word
from tests.waiting import wait_until
from tests.workers import submit
from tokenrelay.shared.store.jobs import Note, Take, requeue_call, take_call
from tokenrelay.shared.wire import keys

if TYPE_CHECKING:
    from redis import Redis

    from tests.redis_servers import RedisServer
    from tokenrelay.shared.redis.batches import Pipeline

NOW = datetime.now(UTC)


def check_is_poison(redis: Redis, pipeline: Pipeline, word: str, timeout_s: float) -> None:
    healthy = {seed: submit(pipeline, NOW, seed=seed, max_new_tokens=20) for seed in range(3)}
    sick = submit(pipeline, NOW, prompt=f"w1 {word}")
    healthy |= {seed: submit(pipeline, NOW, seed=seed, max_new_tokens=20) for seed in range(3, 6)}
    wait_until(lambda: state(redis, sick) == "failed", timeout_s)
    assert result(redis, sick).code == "poison_request"
    for seed, request_id in healthy.items():
        wait_until(lambda request_id=request_id: state(redis, request_id) == "incomplete", 30)  # type: ignore[misc]
        assert result(redis, request_id).text == words(seed, 20)


@pytest.mark.slow
def test_a_prompt_that_kills_each_worker_is_poison(redis_server: RedisServer, redis: Redis, pipeline: Pipeline) -> None:
    """Also for the others that each of the dead had taken with it."""
    with supervised(redis_server.url):
        wait_until(lambda: ready(redis), 30)
        check_is_poison(redis, pipeline, POISON_TEXT, 50)


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_prompt_whose_encoding_never_ends_is_poison(
    redis_server: RedisServer, redis: Redis, pipeline: Pipeline
) -> None:
    with supervised(redis_server.url, STALL_TIMEOUT_S="1"):
        wait_until(lambda: ready(redis), 30)
        check_is_poison(redis, pipeline, HANGING_TEXT, 80)


def crashed(pipeline: Pipeline, execution_id: str) -> str:
    (reply,) = pipeline.run([requeue_call(execution_of(execution_id), "front", Note(alone_from=2))])
    return reply_word(reply)


def test_a_death_is_counted_once(redis: Redis, pipeline: Pipeline) -> None:
    """However often it is told, and not for a hand-back."""
    enqueue(pipeline)
    take(pipeline, "x1")
    requeue(pipeline, execution_of("x1"))
    take(pipeline, "x2")
    assert redis.hget(keys.rq_job(REQUEST_ID), "crashed") is None
    assert [crashed(pipeline, "x2") for _ in range(3)] == ["OK", "NOT_STARTED", "NOT_STARTED"]
    assert redis.hget(keys.rq_job(REQUEST_ID), "crashed") == b"1"


def test_the_second_death_lets_it_run_alone(redis: Redis, pipeline: Pipeline) -> None:
    enqueue(pipeline)
    for execution_id in ("x1", "x2"):
        assert take(pipeline, execution_id), execution_id
        assert crashed(pipeline, execution_id) == "OK"
    busy = Take("w1", (DEFAULT,), ("x3",), 60, idle=False)
    assert pipeline.run([take_call(busy)]) == [[]]
    ((_, job_id, _, _, deaths),) = pipeline.run([take_call(Take("w1", (DEFAULT,), ("x4",), 60))])[0]
    assert (job_id, deaths) == (REQUEST_ID.encode(), b"2")
    requeue(pipeline, execution_of("x4"))


@pytest.mark.parametrize("odd", [b"\xff", b"", b"1e30", b"nan", b"9" * 5000])
def test_a_count_that_nobody_of_ours_wrote_is_none(redis: Redis, pipeline: Pipeline, odd: bytes) -> None:
    enqueue(pipeline)
    take(pipeline, "x1")
    redis.hset(keys.rq_job(REQUEST_ID), "crashed", odd)
    assert crashed(pipeline, "x1") == "OK"
    assert take(pipeline, "x2")
    requeue(pipeline, execution_of("x2"))
