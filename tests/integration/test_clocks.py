"""Workers whose clocks are wrong: whatever is compared with Redis's scores is Redis's own time."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
from rq.registry import StartedJobRegistry
from rq.results import Result
from rq.serializers import JSONSerializer

from tests.fleet import ROOT
from tests.integration.scripts.queue_plane import claimed
from tests.integration.test_repairs import QUEUE, WIP, claim, taken
from tests.integration.test_worker import job, state
from tests.waiting import wait_until
from tests.workers import submit
from tokenrelay.shared.redis.commands import Call
from tokenrelay.shared.store.jobs import Outcome, close_call, extend_call, requeue_call
from tokenrelay.shared.store.scripts import script
from tokenrelay.shared.wire import keys

if TYPE_CHECKING:
    from collections.abc import Iterator

    from redis import Redis

    from tests.redis_servers import RedisServer
    from tokenrelay.shared.redis.batches import Pipeline

NOW = datetime.now(UTC)
FINISHED = keys.rq_registry("finished", QUEUE)


@contextmanager
def wrong_clock(redis: Redis, url: str, ahead_s: int) -> Iterator[None]:
    """A worker so many seconds ahead of everybody else."""
    command = [sys.executable, "-m", "tests.shifted_child", str(ahead_s)]
    environment = {**os.environ, "TOKENRELAY_REDIS_URL": url, "TOKENRELAY_DRAIN_TIMEOUT_S": "0"}
    with subprocess.Popen(command, cwd=ROOT, env=environment) as process:
        try:
            wait_until(lambda: redis.scard(keys.rq_workers(QUEUE)) == 1, 60)
            yield
        finally:
            process.terminate()
            process.wait(30)


def seconds(redis: Redis) -> float:
    now: Any = redis.time()
    return float(now[0] + now[1] / 1e6)


@pytest.mark.slow
@pytest.mark.parametrize("ahead_s", [3600, -3600, 120])
def test_a_wrong_clock_leaves_rqs_registries_right(
    redis: Redis, redis_server: RedisServer, pipeline: Pipeline, ahead_s: int
) -> None:
    """A worker an hour ahead took finished jobs, an hour behind running ones out of RQ's registries every 2 s."""
    with wrong_clock(redis, redis_server.url, ahead_s):
        long = submit(pipeline, NOW, max_new_tokens=5_000)
        wait_until(lambda: state(redis, long) == "in_progress")
        began, ended = seconds(redis), []
        while seconds(redis) < began + 5:  # at least two looks at the registries
            ended.append(submit(pipeline, NOW, max_new_tokens=1))
            wait_until(lambda: job(redis, ended[-1]).get_status() == "finished")
            now = seconds(redis)
            kept = [(redis.zscore(FINISHED, one) or 0) - now for one in ended]
            assert all(45 < left_s <= 60 for left_s in kept), sorted(kept)[:3] + sorted(kept)[-3:]
            members: Any = redis.zrange(WIP, 0, -1)
            assert [(redis.zscore(WIP, member) or 0) > now for member in members] == [True]
        # RQ's own clean-up, by a right clock, agrees that it runs.
        StartedJobRegistry(QUEUE, connection=redis, serializer=JSONSerializer).cleanup()
        assert job(redis, long).get_status() == "started"
        finished = job(redis, ended[0])
        times = (finished.started_at, finished.ended_at, finished.last_heartbeat)
        assert all(at is not None and abs(at.timestamp() - seconds(redis)) < 30 for at in times)
        pipeline.run([Call(script("cancel"), keys.of_request(long), ("test",))])
        wait_until(lambda: job(redis, long).get_status() == "canceled")
        wait_until(lambda: claimed(redis, QUEUE) == [])


def test_rqs_lease_is_renewed_by_rediss_clock(redis: Redis, pipeline: Pipeline) -> None:
    """No clock goes into the call."""
    request_id = submit(pipeline, NOW)
    execution = taken(pipeline, "w", "x1")
    member = f"{request_id}:x1"
    redis.zadd(WIP, {member: 1})
    assert pipeline.run([extend_call(execution, 60)]) == [[b"OK"]]
    assert abs((redis.zscore(WIP, member) or 0) - seconds(redis) - 60) < 5
    redis.zrem(WIP, member)
    pipeline.run([extend_call(execution, 60)])
    assert redis.zscore(WIP, member) is None, "it was taken from this worker"
    redis.delete(keys.claimed(QUEUE))


def test_times_that_scripts_write_are_rqs(redis: Redis, pipeline: Pipeline) -> None:
    """RQ reads them: the calendar that Lua computes is the right one, and a result has its execution's times."""
    request_id = submit(pipeline, NOW)
    execution = taken(pipeline, "w", "x1")
    claim(pipeline, execution)
    before = seconds(redis)
    pipeline.run([close_call(execution, Outcome("finished", 60, "5 tokens"))])
    closed = job(redis, request_id)
    assert closed.ended_at is not None
    assert closed.started_at is not None
    assert before - 1e-6 <= closed.ended_at.timestamp() <= seconds(redis)
    result = Result.fetch_latest(closed, JSONSerializer)
    assert result is not None
    assert result.execution_id == "x1"
    assert result.execution_started_at is not None
    assert abs(result.execution_started_at.timestamp() - closed.started_at.timestamp()) < 0.001
    pipeline.run([Call(script("cancel"), keys.of_request(request_id), ("test",))])


def test_a_requeued_job_is_dated_too(redis: Redis, pipeline: Pipeline) -> None:
    request_id = submit(pipeline, NOW)
    pipeline.run([requeue_call(taken(pipeline, "w", "x1"), "front")])
    enqueued_at = job(redis, request_id).enqueued_at
    assert enqueued_at is not None
    assert abs(enqueued_at.timestamp() - seconds(redis)) < 5
