"""Deaths of a worker before it could claim a request: which are the request's, and which aren't.

The request's own are those while its prompt is encoded, and while its grammar is compiled in the worker's process.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from tests.counting_child import DEADLY, HANGING_TEXT, HELD, HELD_RESTARTS, POISON_TEXT
from tests.integration.scripts.queue_plane import DEFAULT, enqueue, execution_of, requeue, take
from tests.integration.test_supervisor import child_of, ready, supervised
from tests.integration.test_worker import result, state, words
from tests.streams import REQUEST_ID
from tests.token_plane import reply_word
from tests.waiting import wait_until
from tests.workers import MODEL, submit
from tokenrelay.producer import Producer
from tokenrelay.shared.store.jobs import Note, Take, extend_call, requeue_call, take_call
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


def held_by(redis: Redis, request_id: str) -> str:
    """The ID of the execution in which a worker only keeps the request; empty where none does."""
    for key in redis.scan_iter(f"{keys.rq_execution(request_id, '')}*"):
        if redis.hget(key, "waits") == b"1":
            return str(key.decode())
    return ""


def form(pattern: str) -> Any:
    return {"type": "regex", "value": pattern}


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_deaths_while_a_grammar_waits_to_be_compiled_arent_the_requests(
    redis_server: RedisServer, redis: Redis
) -> None:
    with supervised(redis_server.url) as supervisor, Producer(redis_server.url) as producer:
        wait_until(lambda: ready(redis), 30)
        generation = producer.submit("w1", model=MODEL, response_format=form(HELD), max_new_tokens=5)
        before = ""
        for _ in range(HELD_RESTARTS):
            wait_until(lambda before=before: held_by(redis, generation.request_id) not in ("", before), 60)  # type: ignore[misc]
            before = held_by(redis, generation.request_id)
            child_of(supervisor).kill()
        wait_until(lambda: state(redis, generation.request_id) == "incomplete", 60)
        assert int(redis.hget(keys.rq_job(generation.request_id), "crashed") or 0) == 0


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_grammar_whose_compilation_kills_each_worker_is_poison(redis_server: RedisServer, redis: Redis) -> None:
    """Its deaths aren't those of a request that waits beside it."""
    with supervised(redis_server.url), Producer(redis_server.url) as producer:
        wait_until(lambda: ready(redis), 30)
        innocent = producer.submit("w1", model=MODEL, response_format=form(HELD), max_new_tokens=5)
        wait_until(lambda: held_by(redis, innocent.request_id), 60)
        deadly = producer.submit("w1", model=MODEL, response_format=form(DEADLY))
        wait_until(lambda: state(redis, deadly.request_id) == "failed", 120)
        assert result(redis, deadly.request_id).code == "poison_request"
        wait_until(lambda: state(redis, innocent.request_id) == "incomplete", 60)
        assert int(redis.hget(keys.rq_job(innocent.request_id), "crashed") or 0) == 0


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


def test_the_death_of_a_worker_that_only_kept_the_job_isnt_counted(redis: Redis, pipeline: Pipeline) -> None:
    """And a job that runs alone for its own deaths still does."""
    enqueue(pipeline)
    for number, waits in enumerate([True, False, False, True]):
        execution = execution_of(f"x{number}")
        assert take(pipeline, execution.execution_id)
        pipeline.run([extend_call(execution, 60, waits=True), extend_call(execution, 60, waits=waits)])
        assert crashed(pipeline, execution.execution_id) == "OK"
    assert redis.hget(keys.rq_job(REQUEST_ID), "crashed") == b"2"
    assert redis.hexists(keys.rq_job(REQUEST_ID), "alone")


def test_an_execution_that_is_gone_is_not_noted(redis: Redis, pipeline: Pipeline) -> None:
    """Of a worker that was frozen, say: nothing would remove the key."""
    enqueue(pipeline)
    take(pipeline, "x1")
    requeue(pipeline, execution_of("x1"))
    pipeline.run([extend_call(execution_of("x1"), 60, waits=True)])
    assert not redis.exists(keys.rq_execution(REQUEST_ID, "x1"))


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
