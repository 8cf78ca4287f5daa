"""Malformed data that any Redis client could write into our keys."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from hypothesis import HealthCheck, example, settings
from hypothesis import strategies as st
from redis.exceptions import RedisError

from tests.workers import MODEL
from tokenrelay.shared.wire import keys

if TYPE_CHECKING:
    from redis import Redis

FEW: Final = settings(
    max_examples=8,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
MANY: Final = settings(FEW, max_examples=100)
QUEUE: Final = keys.queue(MODEL, "default")
NASTY: Final = (
    b"",
    b"\xff",
    b"\x00",
    b"-1",
    b"0",
    b"1.5",
    b"nan",
    b"inf",
    b"1e30",
    b"9" * 30,
    b"9" * 5000,
    "\u0663".encode(),
    b"failed cancelled",
    b"paused",
    b"completed",
    b"queued",
    b"null",
    b"{}",
    b"[]",
    b"[" * 3000,
    b'{"a":' * 3000,
    b'"\\ud800"',
    b"\x1b[2J{x}",
)
REQUEST_FIELDS: Final = (
    "wire request body_sha256 state fence attempt crashes next events lease_us suspect_us deadline_us retention_ms "
    "queue owner metadata cancelled_by finished_by prompt_ids prompt_tokens prompt_texts recomputed_tokens fingerprint"
).split()
JOB_FIELDS: Final = (
    "data status origin created_at enqueued_at started_at timeout ttl result_ttl worker_name meta".split()
)
WORKER_FIELDS: Final = "queues birth training pid slots in_flight state hostname successful_job_count".split()
STREAM_FIELDS: Final = (
    "text token at_us event worker attempt resumed_at prompt_tokens seed model finish_reason metadata wire".split()
)
TYPES: Final = ("string", "list", "set", "hash", "zset", "stream")


@dataclass(frozen=True, slots=True)
class Scribble:
    """One write: `what` selects the key; `name` and `payload` are its data."""

    what: str
    name: str
    payload: bytes

    @classmethod
    def drawn(cls, what: str) -> st.SearchStrategy[Scribble]:
        payload = st.one_of(st.sampled_from(NASTY), st.binary(max_size=24))
        return st.builds(cls, st.just(what), st.sampled_from(_NAMES[what]), payload)

    def write(self, redis: Redis, request_id: str) -> None:
        """Raises redis errors, such as for a key that is of another type by now."""
        _WRITE[self.what](redis, request_id, self.name, self.payload)


def _retype(redis: Redis, key: str, kind: str, payload: bytes) -> None:
    redis.delete(key)
    _MAKE[kind](redis, key, payload)
    redis.expire(key, 60)


_MAKE: Final[dict[str, Any]] = {
    "string": lambda redis, key, payload: redis.set(key, payload),
    "list": lambda redis, key, payload: redis.rpush(key, payload),
    "set": lambda redis, key, payload: redis.sadd(key, payload),
    "hash": lambda redis, key, payload: redis.hset(key, payload, payload),
    "zset": lambda redis, key, payload: redis.zadd(key, {payload: 1}),
    "stream": lambda redis, key, payload: redis.xadd(key, {payload: payload}),
}


def _entry(redis: Redis, request_id: str, name: str, payload: bytes) -> None:
    """A stray entry behind the last one, with ordinary fields, one of which is odd."""
    fields: dict[Any, Any] = {"event": "started", "at_us": 1, "worker": "w", "attempt": 1, "text": "", "token": 1}
    redis.xadd(keys.stream(request_id), {**fields, name: payload}, id="*")


def _member(redis: Redis, _: str, name: str, payload: bytes) -> None:
    match name:
        case "queue":
            redis.lpush(keys.rq_queue(QUEUE), payload)
        case "claimed":
            redis.zadd(keys.claimed(QUEUE), {payload: 0})
        case "workers":
            redis.sadd(keys.RQ_WORKERS, payload)
        case "workers of a queue":
            redis.sadd(keys.rq_workers(QUEUE), payload)
        case "queues":
            redis.sadd(keys.RQ_QUEUES, b"rq:queue:tokenrelay." + payload + b".high")
        case registry:
            redis.zadd(keys.rq_registry(registry, QUEUE), {payload: 5})


def _registration(redis: Redis, _: str, name: str, payload: bytes) -> None:
    key = keys.rq_worker("scribbled")
    redis.hset(key, mapping={"queues": QUEUE, "birth": "2026-01-01T00:00:00Z", name: payload})
    redis.expire(key, 10)
    redis.sadd(keys.RQ_WORKERS, key)
    redis.sadd(keys.rq_workers(QUEUE), key)


def _registration_type(redis: Redis, _: str, name: str, payload: bytes) -> None:
    key = keys.rq_worker("scribbled")
    _retype(redis, key, name, payload)
    redis.sadd(keys.RQ_WORKERS, key)
    redis.sadd(keys.rq_workers(QUEUE), key)


_NAMES: Final = {
    "a field of the request": REQUEST_FIELDS,
    "a field of the request is gone": REQUEST_FIELDS,
    "the request's type": TYPES,
    "the stream's type": TYPES,
    "an entry of the stream": STREAM_FIELDS,
    "an entry is gone": ("0-1", "0-2", "1-0", "2-0"),
    "a field of the job": JOB_FIELDS,
    "the job's type": TYPES,
    "the executions' type": TYPES,
    "a member": (
        "queue",
        "claimed",
        "workers",
        "workers of a queue",
        "queues",
        "wip",
        "finished",
        "failed",
        "canceled",
    ),
    "a registration": WORKER_FIELDS,
    "a registration's type": TYPES,
    "a message": (keys.WAKE, keys.ENDED, keys.QUEUED),
}
ANYWHERE: Final = tuple(_NAMES)
scribbles: Final = st.lists(st.sampled_from(ANYWHERE).flatmap(Scribble.drawn), min_size=1, max_size=4)
KNOWN: Final = (
    Scribble("a field of the request", "wire", b"\xff"),
    Scribble("a field of the request", "state", b"failed cancelled"),
    Scribble("a field of the request", "state", b"paused"),
    Scribble("a field of the request", "next", b"1" + b"0" * 30),
    Scribble("a field of the request", "deadline_us", b"nan"),
    Scribble("a field of the request is gone", "prompt_ids", b""),
    Scribble("a member", "queue", b"\xff"),
    Scribble("a member", "claimed", b"\xff"),
    Scribble("a member", "canceled", b"\xff"),
    Scribble("a registration", "pid", b"\xff"),
    Scribble("the executions' type", "string", b""),
    Scribble("the stream's type", "list", b""),
    Scribble("a message", keys.WAKE, b"\xff"),
)
"""Regressions: data that once broke something, tried in every run."""
_WRITE: Final[dict[str, Any]] = {
    "a field of the request": lambda redis, rid, name, payload: redis.hset(keys.request(rid), name, payload),
    "a field of the request is gone": lambda redis, rid, name, _: redis.hdel(keys.request(rid), name),
    "the request's type": lambda redis, rid, name, payload: _retype(redis, keys.request(rid), name, payload),
    "the stream's type": lambda redis, rid, name, payload: _retype(redis, keys.stream(rid), name, payload),
    "an entry of the stream": _entry,
    "an entry is gone": lambda redis, rid, name, _: redis.xdel(keys.stream(rid), name),
    "a field of the job": lambda redis, rid, name, payload: redis.hset(keys.rq_job(rid), name, payload),
    "the job's type": lambda redis, rid, name, payload: _retype(redis, keys.rq_job(rid), name, payload),
    "the executions' type": lambda redis, rid, name, payload: _retype(redis, keys.rq_executions(rid), name, payload),
    "a member": _member,
    "a registration": _registration,
    "a registration's type": _registration_type,
    "a message": lambda redis, _, name, payload: redis.publish(name, payload),
}


def scribble(redis: Redis, request_id: str, chosen: list[Scribble]) -> None:
    for each in chosen:
        with suppress(RedisError):  # such as a field of a key that is of another type by now
            each.write(redis, request_id)


def erase(redis: Redis, *request_ids: str) -> None:
    for request_id in request_ids:
        redis.delete(*keys.of_request(request_id), keys.rq_job(request_id), keys.rq_executions(request_id))
    registries = [keys.rq_registry(kind, QUEUE) for kind in ("wip", "finished", "failed", "canceled")]
    redis.delete(keys.rq_queue(QUEUE), keys.claimed(QUEUE), keys.rq_worker("scribbled"), *registries)
    for members in (keys.RQ_QUEUES, keys.RQ_WORKERS, keys.rq_workers(QUEUE)):
        redis.delete(members)


def examples(test: Any) -> Any:
    """The test with each of KNOWN as an explicit example."""
    for known in KNOWN:
        test = example(chosen=[known])(test)
    return test
