"""RQ's own command line on our jobs: what its users type shows what is true."""

from __future__ import annotations

import re
import subprocess
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from rq.command import send_shutdown_command
from rq.job import Job
from rq.serializers import JSONSerializer

from tests.integration.test_worker import result, rq_state, rq_worker, slow_engine
from tests.waiting import wait_until
from tests.workers import MODEL, running_worker, submit
from tokenrelay.producer import Producer
from tokenrelay.shared.wire import keys
from tokenrelay.shared.wire.entries import State

if TYPE_CHECKING:
    import pytest
    from redis import Redis

    from tests.conftest import MakeRedisServer
    from tests.redis_servers import RedisServer
    from tokenrelay.shared.redis.batches import Pipeline

NOW = datetime.now(UTC)
QUEUE = keys.queue(MODEL, "default")


def rq(server: RedisServer, *arguments: str) -> str:
    command = [sys.executable, "-m", "rq.cli", *arguments, "--url", server.url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_rq_info_shows_the_queue_and_the_worker(redis_server: RedisServer, redis: Redis, pipeline: Pipeline) -> None:
    with running_worker(redis_server.url, slow_engine(slots=1), slots=1, worker_name="box"):
        running = submit(pipeline, NOW, max_new_tokens=200)
        wait_until(lambda: redis.xlen(keys.stream(running)) >= 4)
        for seed in (1, 2):
            submit(pipeline, NOW, seed=seed)
        shown = rq(redis_server, "info", "--raw")
        assert f"queue {QUEUE} 2" in shown
        assert re.search(r"worker box .* busy ", shown), shown
        # Looking runs RQ's clean-up of abandoned jobs: it must not touch a live one.
        assert result(redis, running).usage.completion_tokens == 200


def test_rq_suspend_and_resume(redis_server: RedisServer, redis: Redis, pipeline: Pipeline) -> None:
    with running_worker(redis_server.url) as worker:
        rq(redis_server, "suspend", "--duration", "60")
        wait_until(lambda: rq_state(redis, worker.name) == "suspended")
        request_id = submit(pipeline, NOW)
        assert redis.hget(keys.request(request_id), "state") == b"queued"
        rq(redis_server, "resume")
        assert result(redis, request_id).state is State.INCOMPLETE


def test_rqs_shutdown_command_drains(redis_server: RedisServer, redis: Redis, pipeline: Pipeline) -> None:
    with running_worker(redis_server.url, slow_engine(slots=1), slots=1, drain_timeout_s=60) as worker:
        running = submit(pipeline, NOW, max_new_tokens=50)
        wait_until(lambda: redis.xlen(keys.stream(running)) >= 4)
        left = submit(pipeline, NOW)
        send_shutdown_command(redis, worker.name)
        registered = rq_worker(redis, worker.name)
        wait_until(lambda: registered.shutdown_requested_date)
        assert registered.death_date is None
        assert result(redis, running).usage.completion_tokens == 50
        wait_until(lambda: registered.death_date)
    assert redis.hget(keys.request(left), "state") == b"queued"


def test_rqs_own_command_runs_our_worker(
    redis_server: RedisServer, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RQ's command line accepts subclasses of RQ's worker only, and calls two of their methods."""
    monkeypatch.setenv("TOKENRELAY_REDIS_URL", redis_server.url)
    with Producer(redis_server.url) as producer:
        asked = producer.submit("What is the weather today?")
        command = ("worker", "-w", "tokenrelay.worker.generation_worker.GenerationWorker", "--name", "box", "--burst")
        shown = rq(redis_server, *command, "--verbose", keys.queue("weather", "default"))
        assert asked.result(timeout_s=60).text == "It is sunny and warm."
    assert "worker box listens on tokenrelay.weather.high" in shown
    job = Job.fetch(asked.request_id, connection=redis, serializer=JSONSerializer)
    assert (job.get_status(), job.worker_name) == ("finished", "box")


def test_rqs_own_command_obeys_the_streams_url(
    make_redis_server: MakeRedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The queues are where RQ connects, whatever TOKENRELAY_REDIS_URL says."""
    queues, streams = make_redis_server(), make_redis_server()
    monkeypatch.setenv("TOKENRELAY_REDIS_URL", "redis://127.0.0.1:1/0")
    monkeypatch.setenv("TOKENRELAY_STREAMS_URL", streams.url)
    with Producer(queues.url) as producer:
        asked = producer.submit("What is the weather today?")
        command = ("worker", "-w", "tokenrelay.worker.generation_worker.GenerationWorker", "--burst")
        rq(queues, *command, keys.queue("weather", "default"))
        assert asked.result(timeout_s=60).text == "It is sunny and warm."


def test_requeueing_a_failed_request_is_refused_without_harm(
    redis_server: RedisServer, redis: Redis, pipeline: Pipeline
) -> None:
    request_id = submit(pipeline, NOW)
    redis.hset(keys.request(request_id), "request", "{")
    with running_worker(redis_server.url):
        assert result(redis, request_id).state is State.FAILED
        wait_until(lambda: redis.hget(keys.rq_job(request_id), "status") == b"failed")
        before = redis.xrange(keys.stream(request_id))
        Job.fetch(request_id, connection=redis, serializer=JSONSerializer).requeue()
        wait_until(lambda: redis.llen(keys.rq_queue(QUEUE)) == 0)
        wait_until(lambda: redis.hget(keys.rq_job(request_id), "status") == b"failed")
        assert redis.xrange(keys.stream(request_id)) == before
