"""No order of queue-plane calls, deaths, duplicates and RQ's own clean-ups loses a request; see queue_machine.py."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pytest
from redis.exceptions import ResponseError

from tests.integration.scripts.queue_machine import run_queue_model

if TYPE_CHECKING:
    from tests.redis_servers import RedisServer

SEEN = {
    ("enqueue", "OK"),
    ("enqueue", "ALREADY"),
    ("take", "jobs"),
    ("take", "none"),
    ("claim", "OK"),
    ("claim", "BUSY"),
    ("claim", "DONE"),
    ("requeue", "OK"),
    ("requeue", "NOT_STARTED"),
    ("drop", "OK"),
    ("close", "OK"),
    ("close", "ALREADY"),
    ("clean-up failed", "a claimed job"),
    ("clean-up failed", "a queued job"),
}


def test_no_request_is_lost_between_queue_and_claimed(redis_server: RedisServer) -> None:
    with redis_server.client() as client:
        seen = set(run_queue_model(client))
        for _ in range(4):
            if seen >= SEEN:
                break
            seen |= set(run_queue_model(client, examples=60, derandomize=False))  # a rare case wasn't drawn
    assert seen >= SEEN, "a case that no example came to is a case that no example checked"


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_no_request_is_lost_on_fresh_examples(redis_server: RedisServer) -> None:
    with redis_server.client() as client:
        run_queue_model(client, examples=200, derandomize=False)


# what is broken → (a comment of the one script that is meant, what is taken out, what stands there instead)
MUTANTS: dict[str, tuple[str, str, str]] = {
    "take claims nothing": ("-- Take up to n jobs", "redis.call('ZADD', claimed, now_ms, job_id)", ""),
    "requeue pushes nothing": (
        "-- Give a taken job back",
        "redis.call(ARGV[3] == 'front' and 'LPUSH' or 'RPUSH', KEYS[6], job_id)",
        "",
    ),
    "requeue leaves RQ's status": ("-- Give a taken job back", "'status', 'queued', ", ""),
    "what a clean-up failed is not requeued": (
        "-- Give a taken job back",
        "if status ~= 'started' and status ~= 'failed' then",
        "if status ~= 'started' then",
    ),
    "a dropped execution is a dropped claim": (
        "-- Forget this execution",
        "return { 'OK' }",
        "redis.call('ZREM', KEYS[5], job_id) return { 'OK' }",
    ),
    "a closed job stays claimed": ("-- Make RQ say", "redis.call('ZREM', KEYS[5], job_id)", ""),
    "a closed job stays in its queue": ("-- Make RQ say", "redis.call('LREM', KEYS[6], 0, job_id)", ""),
    "a given-up execution stays in wip": (
        "-- What the scripts that give",
        "redis.call('ZREM', KEYS[2], composite)",
        "",
    ),
    "take drops what a clean-up failed": (
        "-- Take up to n jobs",
        "if status == 'failed' then redis.call('ZADD', claimed, 'NX', 0, job_id) end",
        "",
    ),
    "requeue leaves others' executions": ("-- Give a taken job back", "drop_all_executions()", "drop_execution()"),
    "a repeated take takes anew": ("-- Take up to n jobs", "known[execution_id] = job_id", ""),
}
QUICK = {"take claims nothing", "requeue pushes nothing", "a closed job stays claimed"}


@pytest.mark.parametrize(
    "mutant", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in MUTANTS]
)
def test_the_model_notices(mutant: str, redis_server: RedisServer) -> None:
    only_in, old, new = MUTANTS[mutant]
    applied: Counter[str] = Counter()

    def alter(lua: str) -> str:
        if only_in in lua and old in lua:
            applied[mutant] += 1
            return lua.replace(old, new)
        return lua

    with redis_server.client() as client, pytest.raises((AssertionError, ResponseError)):
        run_queue_model(client, alter=alter, examples=150)
    assert applied, "the mutant's text is in no script any more: bring it up to date"
