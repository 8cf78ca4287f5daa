"""The script that admits a request: what it binds, counts and refuses, on every Redis that is supported."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.integration.scripts.queue_plane import (
    DEFAULT,
    OTHER_ID,
    THIRD_ID,
    claimed,
    close,
    enqueue,
    execution_of,
    take,
)
from tests.streams import REQUEST_ID
from tokenrelay.shared.store.admissions import (
    Admission,
    AdmitReply,
    Admitted,
    Bound,
    KeyBinding,
    OwnerLimits,
    TooManyOpen,
    TooManyQueued,
    admit_call,
)
from tokenrelay.shared.store.job_replies import Full
from tokenrelay.shared.store.jobs import Outcome
from tokenrelay.shared.wire import keys

if TYPE_CHECKING:
    from redis import Redis

    from tokenrelay.shared.redis.batches import Pipeline
    from tokenrelay.shared.store.jobs import JobStatus

FOURTH_ID = "fourth_0123456789_abcdef"
OWNED = keys.of_owner("alice")


def admit(
    pipeline: Pipeline,
    request_id: str = REQUEST_ID,
    *,
    key: str | None = None,
    replaceable: str = "",
    limits: tuple[int, int] | None = None,
    depth_limit: int = 9,
    ended: tuple[str, ...] = (),
) -> AdmitReply:
    """`limits`: max_concurrent, max_queued of the owner alice."""
    return pipeline.ask(
        admit_call(
            Admission(
                request_id=request_id,
                queue=DEFAULT,
                ttl_ms=60_000,
                depth_limit=depth_limit,
                binding=KeyBinding(key, 5000, replaceable) if key else None,
                limits=OwnerLimits("alice", *limits, ended) if limits else None,
            )
        )
    )


def test_it_binds_a_key_once(pipeline: Pipeline, redis: Redis) -> None:
    assert admit(pipeline, key="k") == Admitted()
    assert admit(pipeline, key="k") == Admitted(), "the reply was lost"
    assert admit(pipeline, OTHER_ID, key="k") == Bound(REQUEST_ID, is_new=True)
    assert admit(pipeline, OTHER_ID, key="k", replaceable=THIRD_ID) == Bound(REQUEST_ID, is_new=True)
    redis.delete(keys.idempotency_mark("k"))
    assert admit(pipeline, OTHER_ID, key="k") == Bound(REQUEST_ID, is_new=False)
    assert admit(pipeline, OTHER_ID, key="k", replaceable=REQUEST_ID) == Admitted()
    assert redis.get(keys.idempotency("k")) == redis.get(keys.idempotency_mark("k")) == OTHER_ID.encode()
    assert 0 < redis.ttl(keys.idempotency("k")) <= 60
    assert 0 < redis.ttl(keys.idempotency_mark("k")) <= 5


def test_a_full_queue_refuses_and_nothing_is_changed(pipeline: Pipeline, redis: Redis) -> None:
    enqueue(pipeline)
    before = sorted(redis.keys())
    assert admit(pipeline, OTHER_ID, key="k", limits=(9, 9), depth_limit=1) == Full(1)
    assert sorted(redis.keys()) == before


def test_a_repeat_is_counted_once(pipeline: Pipeline, redis: Redis) -> None:
    for _ in range(3):
        assert admit(pipeline, limits=(1, 1)) == Admitted()
    assert redis.zcard(OWNED) == 1
    assert 0 < redis.ttl(OWNED) <= 60


def test_what_is_refused_is_not_counted(pipeline: Pipeline, redis: Redis) -> None:
    assert admit(pipeline, limits=(1, 1)) == Admitted()
    enqueue(pipeline)
    for _ in range(3):
        assert admit(pipeline, OTHER_ID, key="k", limits=(1, 1)) == TooManyOpen(1, (REQUEST_ID,))
        assert admit(pipeline, OTHER_ID, key="k", limits=(9, 1)) == TooManyQueued(1, (REQUEST_ID,))
    assert redis.zrange(OWNED, 0, -1) == [REQUEST_ID.encode()]
    assert not redis.exists(keys.idempotency("k"))


def test_a_started_request_is_open_and_no_longer_queued(pipeline: Pipeline, redis: Redis) -> None:
    admit(pipeline, limits=(2, 1))
    enqueue(pipeline)
    assert [taken[1] for taken in take(pipeline, "x1")] == [REQUEST_ID]
    assert admit(pipeline, OTHER_ID, limits=(2, 1)) == Admitted()
    assert redis.zrangebyscore(OWNED, "-inf", "(0") == [REQUEST_ID.encode()]
    assert redis.zrangebyscore(OWNED, "(0", "+inf") == [OTHER_ID.encode()]
    enqueue(pipeline, OTHER_ID)
    reply = admit(pipeline, THIRD_ID, limits=(2, 2))
    assert isinstance(reply, TooManyOpen)
    assert sorted(reply.counted) == sorted((REQUEST_ID, OTHER_ID))
    assert admit(pipeline, THIRD_ID, limits=(3, 1)) == TooManyQueued(1, (OTHER_ID,))


@pytest.mark.parametrize("status", ["finished", "canceled"])
def test_an_ended_request_makes_room(pipeline: Pipeline, redis: Redis, status: JobStatus) -> None:
    admit(pipeline, limits=(1, 1))
    enqueue(pipeline)
    take(pipeline, "x1")
    close(pipeline, execution_of(), Outcome(status, 60, "5 tokens, stop"))
    assert admit(pipeline, OTHER_ID, limits=(1, 1)) == Admitted()
    assert redis.zrange(OWNED, 0, -1) == [OTHER_ID.encode()]


def test_a_job_that_rqs_clean_up_failed_counts_while_it_is_claimed(pipeline: Pipeline, redis: Redis) -> None:
    admit(pipeline, limits=(1, 1))
    enqueue(pipeline)
    take(pipeline, "x1")
    redis.hset(keys.rq_job(REQUEST_ID), "status", "failed")
    assert claimed(redis) == [REQUEST_ID]
    assert admit(pipeline, OTHER_ID, limits=(1, 1)) == TooManyOpen(1, (REQUEST_ID,))
    redis.delete(keys.claimed(DEFAULT))
    assert admit(pipeline, OTHER_ID, limits=(1, 1)) == Admitted()


def test_the_caller_may_know_better_than_rq(pipeline: Pipeline, redis: Redis) -> None:
    admit(pipeline, limits=(1, 1))
    enqueue(pipeline)
    assert admit(pipeline, OTHER_ID, limits=(1, 1), ended=(REQUEST_ID,)) == Admitted()
    assert redis.zrange(OWNED, 0, -1) == [OTHER_ID.encode()]


def test_a_request_without_a_job_counts_for_ten_seconds(pipeline: Pipeline, redis: Redis) -> None:
    """Its gateway is about to enqueue it, or has died. It is nobody's to ask the token plane for."""
    seconds, microseconds = redis.time()
    now_us = seconds * 1_000_000 + microseconds
    redis.zadd(OWNED, {THIRD_ID: now_us - 11_000_000, FOURTH_ID: now_us})
    assert admit(pipeline, limits=(2, 2)) == Admitted()
    assert admit(pipeline, OTHER_ID, limits=(2, 2)) == TooManyOpen(2, ())


def test_a_bound_request_that_was_never_enqueued_is_admitted_again(pipeline: Pipeline, redis: Redis) -> None:
    admit(pipeline, key="k", limits=(1, 1))
    redis.zrem(OWNED, REQUEST_ID)
    assert admit(pipeline, OTHER_ID, limits=(1, 1)) == Admitted()
    assert admit(pipeline, THIRD_ID, key="k", limits=(1, 1)) == TooManyOpen(1, ())
    assert admit(pipeline, THIRD_ID, key="k", limits=(2, 2)) == Bound(REQUEST_ID, is_new=True)
    assert redis.zcard(OWNED) == 2
