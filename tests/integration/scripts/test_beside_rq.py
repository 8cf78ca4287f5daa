"""Jobs of ours beside jobs of RQ's own worker: the same keys and fields, but for what is documented."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest
from rq import SimpleWorker
from rq.executions import Execution as RqExecution
from rq.serializers import JSONSerializer

from tests.integration.scripts.queue_plane import (
    DEFAULT,
    OTHER_ID,
    RETENTION_S,
    close,
    enqueue,
    execution_of,
    rq_queue,
    take,
)
from tests.streams import REQUEST_ID
from tests.token_plane import hashed, rows
from tokenrelay.shared.store.jobs import (
    Outcome,
)
from tokenrelay.shared.wire import keys

if TYPE_CHECKING:
    from redis import Redis

    from tokenrelay.shared.redis.batches import Pipeline


def echo(value: str) -> str:
    """The job that RQ's own worker runs beside ours."""
    if value == "fail":
        raise ValueError(value)
    return value


@pytest.mark.parametrize(("status", "registry"), [("finished", "finished"), ("failed", "failed")])
def test_a_jobs_whole_life_leaves_what_rqs_own_worker_leaves(
    pipeline: Pipeline, redis: Redis, status: Any, registry: str
) -> None:
    their_queue = rq_queue(redis, "theirs")
    argument = "stop" if status == "finished" else "fail"
    their_queue.enqueue_call(
        echo, args=(argument,), timeout=600, result_ttl=RETENTION_S, failure_ttl=RETENTION_S, ttl=1500, job_id=OTHER_ID
    )
    worker = SimpleWorker([their_queue], connection=redis, serializer=JSONSerializer)
    worker.log_job_description = False
    assert worker.work(burst=True, logging_level="CRITICAL")
    enqueue(pipeline)
    take(pipeline, "x" * 32)
    close(pipeline, execution_of("x" * 32), Outcome(status, RETENTION_S, argument))

    ours, theirs = hashed(redis, keys.rq_job(REQUEST_ID)), hashed(redis, keys.rq_job(OTHER_ID))
    assert set(ours) == set(theirs)
    for name in (b"status", b"timeout", b"result_ttl", b"failure_ttl", b"ttl"):
        assert ours[name] == theirs[name]
    (our_result,), (their_result,) = (rows(redis, keys.rq_results(job)) for job in (REQUEST_ID, OTHER_ID))
    assert set(our_result[1]) == set(their_result[1])
    assert our_result[1][b"type"] == their_result[1][b"type"]
    if status == "finished":
        assert our_result[1][b"return_value"] == their_result[1][b"return_value"]
    for queue, job_id in ((DEFAULT, REQUEST_ID), ("theirs", OTHER_ID)):
        assert redis.zcard(keys.rq_registry(registry, queue)) == 1
        assert abs((redis.zscore(keys.rq_registry(registry, queue), job_id) or 0) - time.time() - RETENTION_S) < 10
        for key in (keys.rq_job(job_id), keys.rq_results(job_id)):
            assert abs(redis.ttl(key) - RETENTION_S) < 10
        assert redis.exists(keys.rq_executions(job_id), keys.rq_registry("wip", queue)) == 0


def test_a_running_job_is_as_rqs_own_but_for_what_is_documented(pipeline: Pipeline, redis: Redis) -> None:
    """Ours keeps its TTL while it runs, so no key is without one; the execution also holds the queue's number."""
    enqueue(pipeline)
    take(pipeline, "x1")
    their_queue = rq_queue(redis, "theirs")
    job = their_queue.enqueue_call(keys.JOB_FUNCTION, args=(OTHER_ID,), ttl=1500, job_id=OTHER_ID)
    worker = SimpleWorker([their_queue], connection=redis, serializer=JSONSerializer)
    with redis.pipeline() as batch:
        execution = RqExecution.create(job, 30, batch, worker_name=worker.name)
        batch.execute()
    worker.prepare_job_execution(job)
    ours = hashed(redis, keys.rq_execution(REQUEST_ID, "x1"))
    theirs = hashed(redis, keys.rq_execution(OTHER_ID, execution.id))
    assert set(ours) - set(theirs) == {b"queue"}
    assert set(theirs) <= set(ours)
    changed = [name for name in hashed(redis, keys.rq_job(REQUEST_ID)) if name not in (b"result_ttl", b"failure_ttl")]
    assert set(hashed(redis, keys.rq_job(OTHER_ID))) == set(changed)
    assert redis.ttl(keys.rq_job(REQUEST_ID)) > 0
    assert redis.ttl(keys.rq_job(OTHER_ID)) == -1
    for kind in ("wip",):
        assert redis.zcard(keys.rq_registry(kind, DEFAULT)) == redis.zcard(keys.rq_registry(kind, "theirs")) == 1
    for name in (keys.rq_executions(REQUEST_ID), keys.rq_worker_executions("w1")):
        assert redis.ttl(name) > 0
    redis.delete(keys.rq_job(OTHER_ID))
