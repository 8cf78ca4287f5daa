"""Jobs that somebody who may write to the queue made up: none runs, none stops a worker or its neighbour."""

from __future__ import annotations

import json
import os
import pickle
import zlib
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import pytest
from rq.suspension import resume, suspend

from tests.integration.test_worker import job_failed, result
from tests.waiting import wait_until
from tests.workers import MODEL, running_worker, submit
from tokenrelay.shared.wire import keys
from tokenrelay.shared.wire.entries import State

if TYPE_CHECKING:
    from pathlib import Path

    from redis import Redis

    from tests.redis_servers import RedisServer
    from tokenrelay.shared.redis.batches import Pipeline

NOW: Final = datetime.now(UTC)
QUEUE: Final = keys.queue(MODEL, "default")
HUGE: Final = b"x" * 100_000_000


class Bomb:
    """Unpickling it creates a file."""

    def __init__(self, file: Path) -> None:
        self._file = str(file)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.open, (self._file, os.O_CREAT)


def call(function: str, *arguments: Any) -> bytes:
    """A job's data, as RQ's JSONSerializer writes it."""
    return zlib.compress(json.dumps([function, None, list(arguments), {}]).encode())


def hostile_fields(trap: Path) -> dict[str, dict[str, bytes | str]]:
    """What is wrong with each job's hash. Whatever ran would create `trap`."""
    touch = f"touch {trap}"
    return {
        "a function by name": {"data": call("os.system", touch)},
        "a builtin": {"data": call("builtins.exec", f"open({str(trap)!r}, 'w')")},
        "a pickled payload": {"data": zlib.compress(pickle.dumps(("os.system", None, (Bomb(trap),), {})))},
        "a bare pickle": {"data": pickle.dumps(Bomb(trap))},
        "no zlib": {"data": b"\xff\xfe\x00"},
        "cut zlib": {"data": call("os.system", touch)[:-3]},
        "a zlib bomb": {"data": zlib.compress(b"[" * 50_000_000)},
        "100 MB of data": {"data": HUGE},
        "no data": {"data": b""},
        "our function, another's ID": {"data": call(keys.JOB_FUNCTION, "A" * 22)},
        "our function, more arguments": {"data": call(keys.JOB_FUNCTION, "A" * 22, touch)},
    }


HARMLESS: Final[dict[str, dict[str, bytes | str]]] = {
    "callbacks": {
        "success_callback_name": "os.system",
        "failure_callback_name": "os.system",
        "stopped_callback_name": "os.system",
    },
    "webhooks": {"success_webhook": "http://127.0.0.1:1/", "failure_webhook": "http://127.0.0.1:1/"},
    "bytes that aren't UTF-8": {"description": b"\xff\xfe", "meta": b"\x80\x04\x95", "origin": b"\xff"},
    "times that are none": {"created_at": "yesterday", "enqueued_at": b"\xff", "timeout": "soon", "ttl": "long"},
    "100 MB beside the data": {"description": HUGE},
    "a dependency": {"dependency_ids": '["x"]', "repeats_left": "5", "retries_left": "9"},
}


def test_hostile_jobs_fail_alone_and_run_nothing(
    redis_server: RedisServer, redis: Redis, pipeline: Pipeline, tmp_path: Path
) -> None:
    trap = tmp_path / "owned"
    suspend(redis, ttl=60)
    ids = {}
    for name, fields in hostile_fields(trap).items():
        ids[name] = submit(pipeline, NOW)
        redis.hset(keys.rq_job(ids[name]), mapping=fields)  # type: ignore[arg-type]
    good = submit(pipeline, NOW)
    with running_worker(redis_server.url) as worker:
        resume(redis)
        assert result(redis, good).state is State.INCOMPLETE
        for name, request_id in ids.items():
            failed = result(redis, request_id)
            assert (failed.state, failed.code, failed.usage.completion_tokens) == (State.FAILED, "invalid_job", 0), name
            wait_until(lambda request_id=request_id: job_failed(redis, request_id))  # type: ignore[misc]
        assert result(redis, submit(pipeline, NOW)).state is State.INCOMPLETE
        wait_until(lambda: not worker.threads.status.held)
    assert not trap.exists()


@pytest.mark.parametrize("name", HARMLESS)
def test_fields_that_rq_would_act_on_are_ignored(
    redis_server: RedisServer, redis: Redis, pipeline: Pipeline, name: str
) -> None:
    suspend(redis, ttl=60)
    odd, good = submit(pipeline, NOW), submit(pipeline, NOW)
    redis.hset(keys.rq_job(odd), mapping=HARMLESS[name])  # type: ignore[arg-type]
    with running_worker(redis_server.url):
        resume(redis)
        assert result(redis, odd).state is State.INCOMPLETE
        assert result(redis, good).state is State.INCOMPLETE
        wait_until(lambda: redis.hget(keys.rq_job(good), "status") == b"finished")


def test_queue_members_that_are_no_jobs_are_dropped(
    redis_server: RedisServer, redis: Redis, pipeline: Pipeline
) -> None:
    suspend(redis, ttl=60)
    redis.set("rq:job:text", "a string", ex=60)
    redis.rpush(keys.rq_queue(QUEUE), "text", "never-was", b"\xff\xfe", "a:b:c", "*", "x" * 100_000, "")
    good = submit(pipeline, NOW)
    with running_worker(redis_server.url):
        resume(redis)
        assert result(redis, good).state is State.INCOMPLETE
        wait_until(lambda: redis.llen(keys.rq_queue(QUEUE)) == 0)


def test_a_job_whose_hash_is_only_a_claim_to_be_one(
    redis_server: RedisServer, redis: Redis, pipeline: Pipeline
) -> None:
    """Members with a hash of status `queued`, and IDs that no request can have."""
    suspend(redis, ttl=60)
    made_up = ["../../etc/passwd", "{x}", "a b", "é" * 30, "B" * 22]
    for job_id in made_up:
        redis.hset(keys.rq_job(job_id), mapping={"status": "queued", "data": call(keys.JOB_FUNCTION, job_id)})
        redis.expire(keys.rq_job(job_id), 60)
        redis.rpush(keys.rq_queue(QUEUE), job_id)
    good = submit(pipeline, NOW)
    with running_worker(redis_server.url):
        resume(redis)
        assert result(redis, good).state is State.INCOMPLETE
        wait_until(lambda: all(job_failed(redis, job_id) for job_id in made_up))
