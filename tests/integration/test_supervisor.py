"""The supervisor and its children as real processes: deaths of every kind, and what the streams look like after."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from tests.counting_child import PREFILL_S
from tests.integration.test_worker import entries, result, state, words
from tests.redis_servers import free_port
from tests.scrapes import Scrape
from tests.waiting import wait_until
from tests.workers import MODEL, submit
from tokenrelay.producer import NoWorkerWarning, Producer, StreamTimeout
from tokenrelay.shared.wire import keys
from tokenrelay.shared.wire.entries import Migrated, State
from tokenrelay.worker import metrics

if TYPE_CHECKING:
    from collections.abc import Iterator

    from redis import Redis

    from tests.redis_servers import RedisServer
    from tokenrelay.shared.redis.batches import Pipeline

NOW = datetime.now(UTC)
ROOT = Path(__file__).parents[2]


@contextmanager
def supervised(url: str, **settings: str) -> Iterator[psutil.Process]:
    """A supervisor process whose child serves."""
    chosen = {"REDIS_URL": url, "SERVED_MODEL": MODEL, "WORKER_NAME": "box", "HEARTBEAT_MS": "50", **settings}
    environment = {**os.environ, **{f"TOKENRELAY_{name}": value for name, value in chosen.items()}}
    with subprocess.Popen([sys.executable, "-m", "tests.counting_supervisor"], env=environment, cwd=ROOT) as process:
        supervisor = psutil.Process(process.pid)
        try:
            yield supervisor
        finally:
            left = supervisor.children(recursive=True) if supervisor.is_running() else []
            process.terminate()
            try:
                process.wait(timeout=60)
            finally:
                for orphan in left:
                    if orphan.is_running():
                        orphan.kill()


def ready(redis: Redis) -> bool:
    return bool(redis.exists(keys.rq_worker("box.0")))


def child_of(supervisor: psutil.Process) -> psutil.Process:
    return wait_until(lambda: supervisor.children())[0]


def streaming(redis: Redis, request_id: str, tokens: int = 10) -> bool:
    return redis.xlen(keys.stream(request_id)) >= tokens + 2


def test_a_killed_childs_requests_go_on(redis_server: RedisServer, redis: Redis, pipeline: Pipeline) -> None:
    with supervised(redis_server.url) as supervisor:
        wait_until(lambda: ready(redis), 30)
        ids = {seed: submit(pipeline, NOW, seed=seed, max_new_tokens=100) for seed in range(4)}
        wait_until(lambda: all(streaming(redis, request_id) for request_id in ids.values()))
        child_of(supervisor).kill()
        for seed, request_id in ids.items():
            wait_until(lambda request_id=request_id: state(redis, request_id) == "incomplete", 30)  # type: ignore[misc]
            got = result(redis, request_id)
            assert (got.text, got.attempts) == (words(seed, 100), 2)
            assert [event for event in entries(redis, request_id) if isinstance(event, Migrated)]


@pytest.mark.slow
def test_a_hanging_child_is_killed(redis_server: RedisServer, redis: Redis, pipeline: Pipeline) -> None:
    port = free_port()
    settings = {"STALL_TIMEOUT_S": "1", "LEASE_MS": "60000", "METRICS_PORT": str(port)}
    with supervised(redis_server.url, **settings) as supervisor:
        wait_until(lambda: ready(redis), 30)
        request_id = submit(pipeline, NOW, seed=5, max_new_tokens=100)
        wait_until(lambda: streaming(redis, request_id))
        child_of(supervisor).suspend()
        wait_until(lambda: state(redis, request_id) == "incomplete", 30)
        assert result(redis, request_id).text == words(5, 100)
        scrape = Scrape(port)
        assert scrape.value(metrics.RESTARTS) == scrape.value(metrics.STALLS) == 1


@pytest.mark.slow
def test_a_prefill_longer_than_the_stall_timeout_is_no_hang(
    redis_server: RedisServer, redis: Redis, pipeline: Pipeline
) -> None:
    settings = {"STALL_TIMEOUT_S": str(PREFILL_S * 0.6), "LEASE_MS": "2000"}
    with supervised(redis_server.url, **settings):
        wait_until(lambda: ready(redis), 30)
        slow = submit(pipeline, NOW, prompt="w1 w777", seed=5, max_new_tokens=20)
        wait_until(lambda: state(redis, slow) == "incomplete", 60)
        assert (result(redis, slow).text, result(redis, slow).attempts) == (words(5, 20), 1), "its lease was renewed"


@pytest.mark.slow
def test_an_engine_that_never_returns_is_killed(redis_server: RedisServer, redis: Redis, pipeline: Pipeline) -> None:
    with supervised(redis_server.url, STALL_TIMEOUT_S="2") as supervisor:
        wait_until(lambda: ready(redis), 30)
        child = child_of(supervisor)
        hanging = submit(pipeline, NOW, prompt="w1 w778")
        wait_until(lambda: not child.is_running(), 30)
        wait_until(lambda: redis.hget(keys.request(hanging), "crashes") == b"1")


@pytest.mark.slow
def test_an_outage_of_redis_is_no_hang(redis_server: RedisServer, redis: Redis, pipeline: Pipeline) -> None:
    with supervised(redis_server.url, STALL_TIMEOUT_S="1") as supervisor:
        wait_until(lambda: ready(redis), 30)
        request_id = submit(pipeline, NOW, seed=5, max_new_tokens=100)
        wait_until(lambda: streaming(redis, request_id))
        child = child_of(supervisor)
        server = psutil.Process(redis_server.pid)
        server.suspend()
        try:
            assert psutil.wait_procs([child], timeout=4)[0] == []
        finally:
            server.resume()
        wait_until(lambda: state(redis, request_id) == "incomplete", 30)
        assert result(redis, request_id).text == words(5, 100)
        assert child.is_running()


@pytest.mark.slow
def test_a_worker_that_was_killed_is_missed_within_two_seconds(redis_server: RedisServer, redis: Redis) -> None:
    with supervised(redis_server.url) as supervisor, Producer(redis_server.url) as producer:
        wait_until(lambda: ready(redis), 30)
        child = child_of(supervisor)
        supervisor.kill()
        child.kill()
        wait_until(lambda: not child.is_running())
        began = time.monotonic()
        with pytest.warns(NoWorkerWarning), pytest.raises(StreamTimeout):
            producer.submit("w1", model=MODEL).result(timeout_s=2.5)
        assert time.monotonic() - began < 20


def test_a_child_without_its_supervisor_hands_back_and_stops(
    redis_server: RedisServer, redis: Redis, pipeline: Pipeline
) -> None:
    with supervised(redis_server.url) as supervisor:
        wait_until(lambda: ready(redis), 30)
        request_id = submit(pipeline, NOW, max_new_tokens=5000)
        wait_until(lambda: streaming(redis, request_id))
        child = child_of(supervisor)
        supervisor.kill()
        psutil.wait_procs([child], timeout=15)
        assert not child.is_running()
    assert redis.hmget(keys.request(request_id), "fence", "crashes", "state") == [b"", b"0", b"in_progress"]
    assert redis.lrange(keys.rq_queue(keys.queue(MODEL, "default")), 0, -1) == [request_id.encode()]


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_poison_request_fails_alone(redis_server: RedisServer, redis: Redis, pipeline: Pipeline) -> None:
    with supervised(redis_server.url):
        wait_until(lambda: ready(redis), 30)
        innocent = [submit(pipeline, NOW, seed=seed, max_new_tokens=150) for seed in range(6)]
        poison = submit(pipeline, NOW, prompt="w1 w666")
        late = submit(pipeline, NOW, seed=99, max_new_tokens=20)
        wait_until(lambda: state(redis, poison) == "failed", 60)
        assert result(redis, poison).code == "poison_request"
        for seed, request_id in [*enumerate(innocent), (99, late)]:
            wait_until(lambda request_id=request_id: state(redis, request_id) == "incomplete", 60)  # type: ignore[misc]
            got = result(redis, request_id)
            assert got.state is State.INCOMPLETE
            assert got.text == words(seed, got.usage.completion_tokens)


def test_sigterm_drains_and_exits_0(redis_server: RedisServer, redis: Redis, pipeline: Pipeline) -> None:
    with supervised(redis_server.url) as supervisor:
        wait_until(lambda: ready(redis), 30)
        request_id = submit(pipeline, NOW, seed=1, max_new_tokens=50)
        wait_until(lambda: streaming(redis, request_id))
        supervisor.send_signal(signal.SIGTERM)
        assert supervisor.wait(timeout=60) == 0
    assert result(redis, request_id).text == words(1, 50)


@pytest.mark.slow
def test_a_second_sigterm_hands_back_at_once(redis_server: RedisServer, redis: Redis, pipeline: Pipeline) -> None:
    with supervised(redis_server.url) as supervisor:
        wait_until(lambda: ready(redis), 30)
        request_id = submit(pipeline, NOW, seed=1, max_new_tokens=5000)
        wait_until(lambda: streaming(redis, request_id))
        supervisor.send_signal(signal.SIGTERM)
        wait_until(lambda: redis.hexists(keys.rq_worker("box.0"), "shutdown_requested_date"))
        supervisor.send_signal(signal.SIGTERM)
        assert supervisor.wait(timeout=60) == 0
    assert state(redis, request_id) == "in_progress"
    assert redis.hget(keys.request(request_id), "crashes") == b"0"
