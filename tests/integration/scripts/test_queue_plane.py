"""The scripts that keep RQ's own keys right, seen through RQ's own eyes."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest
from rq import Queue
from rq.job import JobStatus
from rq.registry import CanceledJobRegistry, FailedJobRegistry, FinishedJobRegistry, StartedJobRegistry
from rq.serializers import JSONSerializer

from tests.integration.scripts.queue_plane import (
    DEFAULT,
    HIGH,
    LOW,
    OTHER_ID,
    RETENTION_S,
    THIRD_ID,
    claimed,
    close,
    enqueue,
    execution_of,
    fetch,
    requeue,
    rq_queue,
    run,
    take,
)
from tests.streams import REQUEST_ID
from tests.token_plane import decoded, hashed
from tokenrelay.shared.store.jobs import (
    Execution,
    Outcome,
    drop_call,
    is_our_call,
)
from tokenrelay.shared.wire import keys

if TYPE_CHECKING:
    from redis import Redis

    from tokenrelay.shared.redis.batches import Pipeline


def test_enqueue_answers(pipeline: Pipeline, redis: Redis) -> None:
    assert enqueue(pipeline) == ["OK", 1]
    assert enqueue(pipeline) == ["ALREADY", "queued"], "the reply was lost"
    assert enqueue(pipeline, OTHER_ID, depth_limit=2) == ["OK", 2]
    assert enqueue(pipeline, THIRD_ID, depth_limit=2) == ["FULL", 2]
    assert rq_queue(redis).job_ids == [REQUEST_ID, OTHER_ID]
    assert Queue.all(connection=redis) == [rq_queue(redis)]
    assert redis.exists(keys.rq_job(THIRD_ID)) == 0


def test_enqueue_tells_idle_workers(pipeline: Pipeline, redis: Redis) -> None:
    with redis.pubsub() as channel:  # type: ignore[no-untyped-call]
        channel.subscribe(keys.QUEUED)
        assert channel.get_message(timeout=30)
        enqueue(pipeline)
        message = channel.get_message(timeout=30)
    assert message
    assert message["data"].decode() == keys.rq_queue(DEFAULT)


def test_an_enqueued_job_is_as_rqs_own(pipeline: Pipeline, redis: Redis) -> None:
    enqueue(pipeline)
    ours = hashed(redis, keys.rq_job(REQUEST_ID))
    rq_queue(redis).enqueue_call(
        keys.JOB_FUNCTION,
        args=(OTHER_ID,),
        timeout=600,
        result_ttl=RETENTION_S,
        failure_ttl=RETENTION_S,
        ttl=1500,
        description=f"tokenrelay {OTHER_ID}",
        job_id=OTHER_ID,
    )
    theirs = hashed(redis, keys.rq_job(OTHER_ID))
    assert set(ours) == set(theirs)
    changing = {b"created_at", b"enqueued_at", b"data", b"description"}
    assert {name: ours[name] for name in set(ours) - changing} == {n: theirs[n] for n in set(theirs) - changing}
    for name in (b"created_at", b"enqueued_at"):
        assert len(ours[name]) == len(theirs[name])
    assert abs(redis.ttl(keys.rq_job(REQUEST_ID)) - redis.ttl(keys.rq_job(OTHER_ID))) <= 1
    job, other = fetch(redis), fetch(redis, OTHER_ID)
    assert (job.func_name, job.args, job.kwargs) == (other.func_name, [REQUEST_ID], other.kwargs)
    assert is_our_call(theirs[b"data"], OTHER_ID), "what RQ writes passes the worker's allowlist"


def test_take_goes_by_priority_and_gives_what_rq_gives(pipeline: Pipeline, redis: Redis) -> None:
    enqueue(pipeline, REQUEST_ID, LOW)
    enqueue(pipeline, OTHER_ID, HIGH)
    enqueue(pipeline, THIRD_ID, DEFAULT)
    taken = take(pipeline, "x1", "x2")
    assert [item[:3] for item in taken] == [[1, OTHER_ID, "x1"], [2, THIRD_ID, "x2"]]
    assert all(is_our_call(data, job_id) for _, job_id, _, data in taken)
    assert [item[:3] for item in take(pipeline, "x3", "x4")] == [[3, REQUEST_ID, "x3"]]
    assert take(pipeline, "x5") == []
    assert claimed(redis, HIGH) == [OTHER_ID]

    job = fetch(redis, OTHER_ID)
    assert job.get_status() == JobStatus.STARTED
    assert job.worker_name == "w1"
    assert job.started_at is not None
    (execution,) = job.get_executions()
    assert (execution.id, execution.worker_name) == ("x1", "w1")
    assert StartedJobRegistry(HIGH, connection=redis).get_job_and_execution_ids() == [(OTHER_ID, "x1")]


def test_take_again_after_a_lost_reply_gives_the_same_jobs(pipeline: Pipeline, redis: Redis) -> None:
    for request_id in (REQUEST_ID, OTHER_ID, THIRD_ID):
        enqueue(pipeline, request_id)
    first = take(pipeline, "x1", "x2")
    assert take(pipeline, "x1", "x2") == first
    assert take(pipeline, "x2", "x1") == first[::-1]
    assert [item[1:3] for item in take(pipeline, "x1", "x3")] == [[REQUEST_ID, "x1"], [THIRD_ID, "x3"]]
    assert rq_queue(redis).count == 0


def test_take_drops_what_is_not_queued(pipeline: Pipeline, redis: Redis) -> None:
    enqueue(pipeline, REQUEST_ID)
    enqueue(pipeline, OTHER_ID)
    fetch(redis, OTHER_ID).set_status(JobStatus.CANCELED)
    queue = keys.rq_queue(DEFAULT)
    redis.set("rq:job:wrong-type", "x", ex=60)
    redis.lpush(queue, REQUEST_ID, "no-such-job", "wrong-type")
    assert [item[1] for item in take(pipeline, "x1", "x2", "x3")] == [REQUEST_ID]
    assert redis.llen(queue) == 0
    assert claimed(redis) == [REQUEST_ID]


def test_take_gives_an_oversized_job_without_its_data(pipeline: Pipeline, redis: Redis) -> None:
    enqueue(pipeline)
    redis.hset(keys.rq_job(REQUEST_ID), "data", b"x" * 5000)
    assert take(pipeline, "x1") == [[2, REQUEST_ID, "x1", b""]]


def test_suspension_stops_new_jobs_but_not_the_repeat_of_a_take(pipeline: Pipeline, redis: Redis) -> None:
    enqueue(pipeline, REQUEST_ID)
    first = take(pipeline, "x1")
    enqueue(pipeline, OTHER_ID)
    redis.set(keys.RQ_SUSPENDED, 1, ex=60)
    assert take(pipeline, "x2") == []
    assert take(pipeline, "x1", "x2") == first
    redis.delete(keys.RQ_SUSPENDED)
    assert [item[1] for item in take(pipeline, "x2")] == [OTHER_ID]


def test_close_answers(pipeline: Pipeline, redis: Redis) -> None:
    enqueue(pipeline)
    take(pipeline, "x1")
    done = Outcome("finished", RETENTION_S, "stop, 5 tokens")
    assert close(pipeline, execution_of(), done) == ["OK"]
    assert close(pipeline, execution_of(), done) == ["ALREADY"], "the reply was lost"
    assert len(fetch(redis).results()) == 1
    assert claimed(redis) == []
    redis.delete(keys.rq_job(REQUEST_ID))
    assert close(pipeline, execution_of(), done) == ["LOST"]


def test_close_tells_of_dependents(pipeline: Pipeline, redis: Redis) -> None:
    enqueue(pipeline)
    take(pipeline, "x1")
    redis.sadd(keys.rq_dependents(REQUEST_ID), "dependent")
    assert close(pipeline, execution_of(), Outcome("finished", RETENTION_S)) == ["DEPENDENTS"]
    assert 0 < redis.ttl(keys.rq_dependents(REQUEST_ID)) <= RETENTION_S


@pytest.mark.parametrize(
    ("status", "registry"),
    [
        ("finished", FinishedJobRegistry),
        ("failed", FailedJobRegistry),
        ("stopped", FailedJobRegistry),
        ("canceled", CanceledJobRegistry),
    ],
)
def test_rq_sees_how_a_job_ended(pipeline: Pipeline, redis: Redis, status: Any, registry: Any) -> None:
    enqueue(pipeline)
    take(pipeline, "x1")
    assert close(pipeline, execution_of(), Outcome(status, RETENTION_S, "a detail")) == ["OK"]
    job = fetch(redis)
    assert job.get_status() == status
    assert job.ended_at is not None
    assert registry(DEFAULT, connection=redis).get_job_ids(cleanup=False) == [REQUEST_ID]
    assert StartedJobRegistry(DEFAULT, connection=redis).count == 0
    assert job.get_executions() == []
    result = job.latest_result()
    if status == "canceled":
        assert result is None
    elif status == "finished":
        assert result is not None
        assert (result.type, result.return_value) == (result.Type.SUCCESSFUL, "a detail")
    else:
        assert result is not None
        assert (result.type, result.exc_string) == (result.Type.FAILED, "a detail")
    left = {decoded(key) for key in redis.keys()} - {keys.RQ_QUEUES}
    assert all(0 < redis.ttl(key) <= RETENTION_S or redis.type(key) == b"zset" for key in left)


def test_what_ended_long_ago_leaves_the_registries(pipeline: Pipeline, redis: Redis) -> None:
    """But that of canceled jobs: RQ scores its own cancels with when they were made, and maintenance ends each."""
    for status, kind in (("canceled", "canceled"), ("finished", "finished"), ("failed", "failed")):
        request_id = kind.ljust(22, "x")
        redis.zadd(keys.rq_registry(kind, DEFAULT), {"long-ago": time.time() - RETENTION_S - 5})
        enqueue(pipeline, request_id)
        close(pipeline, Execution(request_id, DEFAULT), Outcome(status, RETENTION_S))  # type: ignore[arg-type]
        left = decoded(redis.zrange(keys.rq_registry(kind, DEFAULT), 0, -1))
        assert left == (["long-ago", request_id] if kind == "canceled" else [request_id])


def test_close_repairs_what_rqs_clean_up_did(pipeline: Pipeline, redis: Redis) -> None:
    enqueue(pipeline)
    take(pipeline, "x1")
    StartedJobRegistry(DEFAULT, connection=redis, serializer=JSONSerializer).cleanup(time.time() + 60)
    assert fetch(redis).get_status() == JobStatus.FAILED
    assert close(pipeline, execution_of(), Outcome("finished", RETENTION_S, "stop")) == ["OK"]
    assert fetch(redis).get_status() == JobStatus.FINISHED
    assert fetch(redis).return_value() == "stop"
    assert FailedJobRegistry(DEFAULT, connection=redis).get_job_ids() == []


def test_close_takes_a_second_entry_off_the_queue(pipeline: Pipeline, redis: Redis) -> None:
    enqueue(pipeline)
    redis.rpush(keys.rq_queue(DEFAULT), REQUEST_ID)
    take(pipeline, "x1")
    close(pipeline, execution_of(), Outcome("finished", RETENTION_S))
    assert rq_queue(redis).job_ids == []


@pytest.mark.parametrize("position", ["front", "back"])
def test_requeue_answers(pipeline: Pipeline, redis: Redis, position: str) -> None:
    for request_id in (REQUEST_ID, OTHER_ID):
        enqueue(pipeline, request_id)
    take(pipeline, "x1")
    assert requeue(pipeline, execution_of(), position) == ["OK"]
    assert requeue(pipeline, execution_of(), position) == ["NOT_STARTED", "queued"], "the reply was lost"
    order = [REQUEST_ID, OTHER_ID]
    assert rq_queue(redis).job_ids == (order if position == "front" else order[::-1])
    job = fetch(redis)
    assert (job.get_status(), job.worker_name, job.started_at) == (JobStatus.QUEUED, None, None)
    assert job.get_executions() == []
    assert StartedJobRegistry(DEFAULT, connection=redis).count == 0
    assert claimed(redis) == []
    assert [item[1] for item in take(pipeline, "x2", "x3")] == rq_queue(redis).job_ids or order
    redis.delete(keys.rq_job(REQUEST_ID))
    assert requeue(pipeline, execution_of("x2")) == ["LOST"]


def test_requeue_repairs_what_rqs_clean_up_failed(pipeline: Pipeline, redis: Redis) -> None:
    enqueue(pipeline)
    take(pipeline, "x1")
    StartedJobRegistry(DEFAULT, connection=redis, serializer=JSONSerializer).cleanup(time.time() + 60)
    assert redis.ttl(keys.rq_job(REQUEST_ID)) <= RETENTION_S, "RQ cut it to failure_ttl"
    assert requeue(pipeline, execution_of()) == ["OK"]
    assert fetch(redis).get_status() == JobStatus.QUEUED
    assert FailedJobRegistry(DEFAULT, connection=redis).get_job_ids() == []
    assert redis.ttl(keys.rq_job(REQUEST_ID)) > RETENTION_S, "it lives to the deadline again"


@pytest.mark.parametrize("how", ["cancelled", "deleted"])
def test_a_job_ended_in_rq_stays_claimed_until_its_request_has_ended(
    pipeline: Pipeline, redis: Redis, how: str
) -> None:
    enqueue(pipeline)
    take(pipeline, "x1")
    if how == "cancelled":
        fetch(redis).cancel()
    else:
        fetch(redis).delete()
    assert requeue(pipeline, execution_of())[0] == ("NOT_STARTED" if how == "cancelled" else "LOST")
    assert claimed(redis) == [REQUEST_ID], "or maintenance would never see it"
    close(pipeline, execution_of(), Outcome("canceled", RETENTION_S))
    assert claimed(redis) == []


def test_drop_forgets_one_execution_only(pipeline: Pipeline, redis: Redis) -> None:
    enqueue(pipeline)
    take(pipeline, "x1")
    assert run(pipeline, drop_call(execution_of())) == ["OK"]
    assert fetch(redis).get_status() == JobStatus.STARTED
    assert fetch(redis).get_executions() == []
    assert claimed(redis) == [REQUEST_ID]
