"""RQ jobs that depend on a generation run as RQ would run them, however it ends and whoever tells RQ so."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
from rq import Queue
from rq.job import Dependency, Job
from rq.registry import DeferredJobRegistry

from tests.engines import CountingEngine
from tests.integration.scripts.queue_plane import claimed
from tests.integration.test_repairs import QUEUE, claim, redis_server_url, taken
from tests.integration.test_worker import job, state
from tests.redis_servers import skip_before_redis_7
from tests.waiting import wait_until
from tests.workers import MODEL, VOCABULARY, running_worker, submit
from tokenrelay.producer import Producer
from tokenrelay.shared.errors import GenerationExpired
from tokenrelay.shared.redis.commands import Call
from tokenrelay.shared.store.scripts import script
from tokenrelay.shared.wire import keys

if TYPE_CHECKING:
    from collections.abc import Iterator

    from redis import Redis

    from tokenrelay.shared.redis.batches import Pipeline

NOW = datetime.now(UTC)
THEIRS = "theirs"


@pytest.fixture(autouse=True)
def _no_jobs_left(redis: Redis) -> Iterator[None]:
    yield
    for pattern in ("rq:job:*", "rq:deferred:*", "rq:queue:theirs", "rq:ready:*"):
        for key in redis.scan_iter(pattern):
            redis.delete(key)


def dependent(redis: Redis, *request_ids: str, allow_failure: bool = False) -> Job:
    """A job of a user's own, pickled as is RQ's default, that waits for these."""
    wanted = Dependency(jobs=list(request_ids), allow_failure=allow_failure)
    return Queue(THEIRS, connection=redis).enqueue(
        os.getenv, "HOME", depends_on=wanted, meta={"pickled": {1}}, job_timeout=60, result_ttl=60, failure_ttl=60
    )


def queued(redis: Redis) -> list[str]:
    return Queue(THEIRS, connection=redis).job_ids


def deferred(redis: Redis) -> list[str]:
    return DeferredJobRegistry(THEIRS, connection=redis).get_job_ids()


def test_it_runs_when_the_generation_has_finished(redis: Redis, pipeline: Pipeline) -> None:
    request_id = submit(pipeline, NOW)
    waiting = dependent(redis, request_id)
    assert (queued(redis), deferred(redis)) == ([], [waiting.id])
    with running_worker(redis_server_url(redis)):
        wait_until(lambda: queued(redis) == [waiting.id])
        wait_until(lambda: claimed(redis, QUEUE) == [])
    assert deferred(redis) == []
    found = Job.fetch(waiting.id, connection=redis)
    assert (found.get_status(), found.meta, found.func_name, found.args) == (
        "queued",
        {"pickled": {1}},
        "os.getenv",
        ("HOME",),
    )


@pytest.mark.parametrize("allow_failure", [True, False])
def test_a_failed_generation_runs_those_that_allow_it(redis: Redis, pipeline: Pipeline, allow_failure: bool) -> None:
    request_id = submit(pipeline, NOW, deadline_s=0.001)
    waiting = dependent(redis, request_id, allow_failure=allow_failure)
    with running_worker(redis_server_url(redis)):
        wait_until(lambda: job(redis, request_id).get_status() == "failed")
        wait_until(lambda: claimed(redis, QUEUE) == [])
    assert (queued(redis), deferred(redis)) == (([waiting.id], []) if allow_failure else ([], [waiting.id]))


@pytest.mark.parametrize("how", ["cancel", "rq"])
def test_a_cancelled_generation_runs_none(redis: Redis, pipeline: Pipeline, how: str) -> None:
    slow = CountingEngine(vocabulary=VOCABULARY, step_delay_s=0.05)
    with running_worker(redis_server_url(redis), slow):
        request_id = submit(pipeline, NOW, max_new_tokens=5_000)
        waiting = dependent(redis, request_id, allow_failure=True)
        wait_until(lambda: state(redis, request_id) == "in_progress")
        if how == "cancel":
            pipeline.run([Call(script("cancel"), keys.of_request(request_id), ("test",))])
        else:
            job(redis, request_id).cancel()
        wait_until(lambda: state(redis, request_id) == "cancelled")
        wait_until(lambda: claimed(redis, QUEUE) == [])
    assert (queued(redis), deferred(redis)) == ([], [waiting.id])


def test_it_runs_after_a_generation_that_maintenance_has_closed(redis: Redis, pipeline: Pipeline) -> None:
    """Its worker wrote the end and died before it told RQ."""
    request_id = submit(pipeline, NOW)
    waiting = dependent(redis, request_id)
    execution = taken(pipeline, "dead", "x1")
    fence = claim(pipeline, execution)
    end = ("completed", "stop", "", "", "")
    pipeline.run([Call(script("finish"), keys.of_request(request_id), (fence, 1, *end))])
    with running_worker(redis_server_url(redis)):
        wait_until(lambda: queued(redis) == [waiting.id])
        wait_until(lambda: claimed(redis, QUEUE) == [])


def test_it_runs_after_a_generation_that_a_producer_has_expired(redis: Redis, pipeline: Pipeline) -> None:
    request_id = submit(pipeline, NOW, deadline_s=0.001)
    waiting = dependent(redis, request_id, allow_failure=True)
    with Producer(redis_server_url(redis)) as producer, pytest.raises(GenerationExpired):
        producer.get(request_id).result()
    assert job(redis, request_id).get_status() == "failed"
    with running_worker(redis_server_url(redis)):
        wait_until(lambda: queued(redis) == [waiting.id])
        wait_until(lambda: claimed(redis, QUEUE) == [])


def test_it_waits_for_all_that_it_depends_on(redis: Redis, pipeline: Pipeline) -> None:
    first = submit(pipeline, NOW)
    slow = CountingEngine(vocabulary=VOCABULARY, step_delay_s=0.05)
    with running_worker(redis_server_url(redis), slow):
        second = submit(pipeline, NOW, max_new_tokens=5_000)
        waiting = dependent(redis, first, second, allow_failure=True)
        wait_until(lambda: job(redis, first).get_status() == "finished")
        wait_until(lambda: claimed(redis, QUEUE) == [second])
        assert queued(redis) == []
        redis.hset(keys.request(second), "deadline_us", 1)
        wait_until(lambda: queued(redis) == [waiting.id])
        wait_until(lambda: claimed(redis, QUEUE) == [])


def test_one_that_is_unreadable_keeps_no_other_from_running(redis: Redis, pipeline: Pipeline) -> None:
    request_id = submit(pipeline, NOW)
    broken, waiting = dependent(redis, request_id), dependent(redis, request_id)
    redis.hset(keys.rq_job(broken.id), "status", b"\xff")
    with running_worker(redis_server_url(redis)):
        wait_until(lambda: queued(redis) == [waiting.id])
        wait_until(lambda: claimed(redis, QUEUE) == [])


def test_nothing_that_a_dependent_names_is_imported_or_unpickled(redis: Redis, pipeline: Pipeline) -> None:
    request_id = submit(pipeline, NOW)
    waiting = dependent(redis, request_id)
    bomb = b"cos\n_exit\n(I1\ntR."  # unpickling it would end this process
    names = ("success_callback_name", "failure_callback_name", "stopped_callback_name")
    hostile: dict[Any, Any] = dict.fromkeys(names, "antigravity.geohash")
    redis.hset(keys.rq_job(waiting.id), mapping={"data": bomb, "meta": bomb, "result": bomb, **hostile})
    with running_worker(redis_server_url(redis)):
        wait_until(lambda: queued(redis) == [waiting.id])
        wait_until(lambda: claimed(redis, QUEUE) == [])
    assert redis.hget(keys.rq_job(waiting.id), "meta") == bomb


def test_a_job_enqueued_after_the_end_runs_at_once(redis: Redis, pipeline: Pipeline) -> None:
    request_id = submit(pipeline, NOW)
    with running_worker(redis_server_url(redis)):
        wait_until(lambda: job(redis, request_id).get_status() == "finished")
    assert dependent(redis, request_id).id in queued(redis)


def test_a_full_redis_loses_none(redis: Redis, pipeline: Pipeline) -> None:
    """RQ can't enqueue them then; they run once it can."""
    skip_before_redis_7(redis, "a script can't be allowed to write where memory is short")
    request_id = submit(pipeline, NOW)
    waiting = dependent(redis, request_id)
    fence = claim(pipeline, taken(pipeline, "dead", "x1"))
    with running_worker(redis_server_url(redis)) as worker:
        wait_until(lambda: redis.exists(keys.maintainer(keys.queues(MODEL)[0])))
        redis.config_set("maxmemory", "1")
        try:
            end = ("completed", "stop", "", "", "")
            ((word, *_),) = pipeline.run([Call(script("finish"), keys.of_request(request_id), (fence, 1, *end))])
            assert word == b"OK"
            wait_until(lambda: ("maintenance",) in dict(worker.threads.figures.redis_errors.items()))
            assert (queued(redis), claimed(redis, QUEUE)) == ([], [request_id])
        finally:
            redis.config_set("maxmemory", "0")
        wait_until(lambda: queued(redis) == [waiting.id])
        wait_until(lambda: claimed(redis, QUEUE) == [])
