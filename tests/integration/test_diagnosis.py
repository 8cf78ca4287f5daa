"""The findings of `tokenrelay status`, each produced by the real condition."""

from __future__ import annotations

import resource
import shutil
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from redis.exceptions import ResponseError
from rq.suspension import resume, suspend

from tests.integration.test_worker import slow_engine
from tests.redis_servers import binaries
from tests.waiting import wait_until
from tests.workers import MODEL, running_worker
from tests.writers import Writer
from tokenrelay.cli.ops.commands import read_overview
from tokenrelay.cli.ops.diagnosis import Finding, diagnose, healthy_line
from tokenrelay.cli.ops.explanation import explain_request
from tokenrelay.cli.ops.system import Queue, System, Worker, read_system
from tokenrelay.producer._core.drivers import Driver
from tokenrelay.shared.wire import keys

if TYPE_CHECKING:
    from pathlib import Path

    from redis import Redis

    from tests.conftest import MakeRedisServer
    from tests.redis_servers import RedisServer
    from tokenrelay.producer import Generation, Producer

QUEUE = keys.queue("weather", "default")


def found(redis: Redis) -> dict[str, Finding]:
    _, findings = Driver(redis).run(read_overview())
    assert all(finding.message and finding.remedy for finding in findings)
    return {finding.code: finding for finding in findings}


def why(redis: Redis, generation: Generation) -> dict[str, Finding]:
    return {finding.code: finding for finding in Driver(redis).run(explain_request(generation.status()))}


def test_nothing_is_wrong(redis: Redis, writer: Writer, running: Generation) -> None:
    assert found(redis) == why(redis, running) == {}
    told = healthy_line(Driver(redis).run(read_system()))
    assert told == "No problems found: 0 waiting, 1 running, 1 live worker, serving 'weather'."


def test_no_worker_at_all_and_none_for_the_model(redis: Redis, producer: Producer) -> None:
    generation = producer.submit("x")
    assert "(no worker is alive)" in found(redis)["no_worker"].message
    Writer(redis, model="owner/name").appear()
    assert "1 request waits in tokenrelay.weather.default" in found(redis)["no_worker"].message
    assert "live workers serve 'owner/name'" in found(redis)["no_worker"].message
    assert "live workers serve 'owner/name'" in why(redis, generation)["no_worker"].message


def test_all_slots_are_taken(redis_server: RedisServer, redis: Redis, producer: Producer) -> None:
    with running_worker(redis_server.url, slow_engine(slots=1), slots=1):
        first, second, third = producer.submit_many(["w1"] * 3, model=MODEL, max_new_tokens=500)
        wait_until(lambda: "all_busy" in found(redis))
        assert "2 requests wait in tokenrelay.counting.default" in found(redis)["all_busy"].message
        assert "all 1 slots of 1 worker are in use, a normal backlog: " in found(redis)["all_busy"].message
        assert why(redis, first) == {}
        assert set(why(redis, second)) == {"all_busy"}
        assert why(redis, third)["queued_behind"].message == "1 request is before it"
        for generation in (third, second, first):
            generation.cancel()


def test_higher_priorities_are_before_it(redis: Redis, producer: Producer, writer: Writer) -> None:
    low = producer.submit_many(["x"] * 2, priority="low")
    producer.submit_many(["x"] * 3, priority="high")
    assert why(redis, low[1])["queued_behind"].message == "4 requests are before it"


def test_suspended(redis: Redis, producer: Producer, writer: Writer) -> None:
    generation = producer.submit("x")
    suspend(redis, ttl=60)
    assert "suspended for another " in found(redis)["suspended"].message
    assert found(redis)["suspended"].remedy == why(redis, generation)["suspended"].remedy == "rq resume"
    resume(redis)
    assert found(redis) == {}


def test_a_worker_that_is_silent_or_gone(redis: Redis, writer: Writer) -> None:
    redis.pexpire(keys.rq_worker(writer.name), 7000)  # as after 3 s without a heartbeat
    assert "its last heartbeat was 3." in found(redis)["worker_silent"].message.replace("2.9", "3.0")
    redis.delete(keys.rq_worker(writer.name))
    redis.sadd(keys.RQ_QUEUES, keys.rq_queue(QUEUE))
    assert "scripted vanished without unregistering" in found(redis)["worker_gone"].message


def test_nobody_is_left_to_go_on(redis: Redis, writer: Writer, running: Generation) -> None:
    redis.delete(keys.rq_worker(writer.name))
    assert "abandoned" not in found(redis)  # its lease is valid: the worker may recover
    assert why(redis, running)["waits_for_lease"].message.startswith("its worker scripted has no heartbeat; another")
    redis.hset(keys.request(running.request_id), "lease_us", 1)
    assert running.request_id in found(redis)["abandoned"].message
    assert "lost its worker after 3 tokens" in why(redis, running)["abandoned"].message
    other = Writer(redis, "other")
    other.appear()
    assert "abandoned" not in found(redis)


def test_a_job_that_rq_lost(redis: Redis, producer: Producer, writer: Writer) -> None:
    generation = producer.submit("x")
    redis.delete(keys.rq_job(generation.request_id))
    assert "its job in RQ is gone" in why(redis, generation)["job_gone"].message


def test_past_its_deadline(redis: Redis, producer: Producer, writer: Writer) -> None:
    generation = producer.submit("x", deadline_s=0.05)
    wait_until(lambda: generation.status().seconds_left < 0)
    assert "past_deadline" in why(redis, generation)
    generation.cancel()


def test_redis_is_full(make_redis_server: MakeRedisServer) -> None:
    with make_redis_server().client() as client:
        client.config_set("maxmemory", "500kb")
        assert "Redis is full (" in found(client)["redis_full"].message


def test_redis_would_evict(make_redis_server: MakeRedisServer) -> None:
    with make_redis_server("--maxmemory-policy", "allkeys-lru").client() as client:
        assert "allkeys-lru" in found(client)["eviction_policy"].message


def test_redis_is_a_replica(make_redis_server: MakeRedisServer) -> None:
    primary, replica = make_redis_server(), make_redis_server()
    with replica.client() as client:
        client.replicaof("127.0.0.1", primary.port)
        assert "read-only replica" in found(client)["redis_is_replica"].message


def test_a_snapshot_failed(make_redis_server: MakeRedisServer) -> None:
    server = make_redis_server()
    with server.client() as client:
        shutil.rmtree(server.folder)
        with suppress(ResponseError):
            client.bgsave()
        wait_until(lambda: client.info("persistence")["rdb_last_bgsave_status"] == "err")
        assert "snapshot failed" in found(client)["redis_cannot_persist"].message


@pytest.mark.skipif(sys.platform != "linux", reason="limits another process's files")
def test_the_append_only_file_cant_be_written(make_redis_server: MakeRedisServer, tmp_path: Path) -> None:
    binary = tmp_path / "redis-server"
    binary.write_text(f"#!/bin/sh\ntrap '' XFSZ\nexec {binaries()[0]} \"$@\"\n")
    binary.chmod(0o755)
    server = make_redis_server("--appendonly", "yes", binary=str(binary))
    with server.client() as client:
        client.set("x", "y", ex=60)
        resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (0, 0))
        client.set("x", "z", ex=60)
        wait_until(lambda: client.info("persistence")["aof_last_write_status"] == "err")
        assert "append-only file" in found(client)["redis_cannot_persist"].message
    server.kill()  # it can't answer the check for leaked keys either


def test_work_that_waits_beside_free_slots() -> None:
    worker = Worker("box", ("weather",), "idle", 8, 0, 0.1, "host", 0, 0)
    queue = Queue(QUEUE, "weather", 2, 0, 1, 12.0)
    now = System(1, (queue,), (worker,), False, None, None, ())
    (finding,) = diagnose(now)
    assert (finding.code, "box has free slots but takes no requests: " in finding.message) == ("not_taken", True)
