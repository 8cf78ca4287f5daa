"""Who counts among an API key's requests when submits meet, fail or are many."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

import pytest

from tokenrelay.producer import IdempotencyConflict, ProducerSettings, QueueFull
from tokenrelay.producer._core.drivers import Driver
from tokenrelay.producer._core.planning import plan_request
from tokenrelay.producer._core.submission import Submitter
from tokenrelay.shared.store.admissions import Admission, Admitted, OwnerLimits, admit_call
from tokenrelay.shared.wire import keys
from tokenrelay.shared.wire.entries import text

if TYPE_CHECKING:
    from collections.abc import Callable

    from redis import Redis

    from tokenrelay.producer._core.planning import Plan
    from tokenrelay.producer._core.steps import Result, Steps
    from tokenrelay.shared.redis.batches import Pipeline

OWNER: Final = "alice"
QUEUE: Final = keys.queue("weather", "default")
SETTINGS: Final = ProducerSettings(max_queue_depth=2)
LIMITS: Final = OwnerLimits(OWNER, max_concurrent=5, max_queued=5)


def planned(prompt: str) -> Plan:
    """A request under one idempotency key, with all options that a model may have defaults for."""
    own = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0}
    submission = {"prompt": prompt, "idempotency_key": "k", **own}
    return replace(plan_request(submission, SETTINGS), owner=OWNER)


def after_the_first(steps: Steps[Result], act: Callable[[], object]) -> Steps[Result]:
    """The steps, with `act` behind their first round trip."""
    replies = yield next(steps)
    act()
    try:
        while True:
            replies = yield steps.send(replies)
    except StopIteration as stop:
        result: Result = stop.value
        return result


def counted(redis: Redis) -> set[str]:
    return {text(member) for member in redis.zrange(keys.of_owner(OWNER), 0, -1)}


def test_a_conflict_leaves_the_other_body_s_request_counted(redis: Redis, pipeline: Pipeline) -> None:
    """Between one gateway's admission and its create, another one creates the request under the key's ID."""
    driver, first, second = Driver(*pipeline.servers), planned("x"), planned("y")

    def submit_second() -> None:
        assert driver.run(Submitter(SETTINGS).submit(second, LIMITS)).request_id == first.request_id

    with pytest.raises(IdempotencyConflict):
        driver.run(after_the_first(Submitter(SETTINGS).submit(first, LIMITS), submit_second))
    assert redis.lrange(keys.rq_queue(QUEUE), 0, -1) == [first.request_id.encode()]
    assert counted(redis) == {first.request_id}


def test_a_retry_that_finds_the_queue_full_again_is_not_counted(redis: Redis, pipeline: Pipeline) -> None:
    """The first one was admitted, and others filled the queue before its job was enqueued."""
    driver = Driver(*pipeline.servers)
    steps = Submitter(SETTINGS).submit(planned("x"), LIMITS)
    with pytest.raises(QueueFull):
        driver.run(after_the_first(steps, lambda: redis.rpush(keys.rq_queue(QUEUE), "one", "two")))
    assert not counted(redis)
    with pytest.raises(QueueFull):
        driver.run(Submitter(SETTINGS).submit(planned("x"), LIMITS))
    assert not counted(redis)
    redis.delete(keys.rq_queue(QUEUE))
    submitted = driver.run(Submitter(SETTINGS).submit(planned("x"), LIMITS))
    assert counted(redis) == {submitted.request_id}


@pytest.mark.parametrize("started", [True, False])
def test_room_is_found_without_a_look_at_all_of_thousands(redis: Redis, pipeline: Pipeline, started: bool) -> None:
    """An owner keeps as many open as it may, and submits the next one as the oldest ends."""
    many, sign = 2000, -1 if started else 1
    now_us = redis.time()[0] * 1_000_000
    with redis.pipeline() as jobs:
        for number in range(1, many):
            jobs.hset(keys.rq_job(f"r{number}"), "status", "started" if started else "queued")
            jobs.expire(keys.rq_job(f"r{number}"), 60)
        jobs.execute()
    ages = range(many, 0, -1)
    redis.zadd(keys.of_owner(OWNER), {f"r{number}": sign * (now_us - age) for number, age in enumerate(ages)})
    redis.zadd(keys.of_owner(OWNER), {"r0": sign * 1_000_000})
    redis.expire(keys.of_owner(OWNER), 60)
    redis.config_resetstat()
    limits = OwnerLimits(OWNER, max_concurrent=many, max_queued=many + 1)
    assert pipeline.ask(admit_call(Admission("new", QUEUE, 60_000, 10, limits=limits))) == Admitted()
    assert redis.info("commandstats")["cmdstat_hmget"]["calls"] <= 256
    assert redis.zscore(keys.of_owner(OWNER), "r0") is None
    assert redis.zcard(keys.of_owner(OWNER)) == many
