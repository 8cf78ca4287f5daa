"""The queue-plane scripts, called by name, and RQ's own view of what they did."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from rq import Queue
from rq.job import Job
from rq.serializers import JSONSerializer

from tests.streams import REQUEST_ID
from tests.token_plane import decoded
from tokenrelay.shared.store.jobs import (
    Enqueue,
    Execution,
    Outcome,
    Take,
    close_call,
    enqueue_call,
    requeue_call,
    take_call,
)
from tokenrelay.shared.wire import keys

if TYPE_CHECKING:
    from redis import Redis

    from tokenrelay.shared.redis.batches import Pipeline
    from tokenrelay.shared.redis.commands import Call


HIGH, DEFAULT, LOW = keys.queues("weather")
OTHER_ID, THIRD_ID = "s" * 22, "t" * 22
RETENTION_S = 900


def reply_of(pipeline: Pipeline, call: Call) -> Any:
    (reply,) = pipeline.run([call])
    if isinstance(reply, Exception):
        raise reply
    return reply


def run(pipeline: Pipeline, call: Call) -> Any:
    return decoded(reply_of(pipeline, call))


def enqueue(pipeline: Pipeline, request_id: str = REQUEST_ID, queue: str = DEFAULT, *, depth_limit: int = 10) -> Any:
    job = Enqueue(request_id, queue, ttl_s=1500, timeout_s=600, retention_s=RETENTION_S, depth_limit=depth_limit)
    return run(pipeline, enqueue_call(job, datetime.now(UTC)))


def take(pipeline: Pipeline, *execution_ids: str, queues: tuple[str, ...] = (HIGH, DEFAULT, LOW)) -> Any:
    reply = reply_of(pipeline, take_call(Take("w1", queues, execution_ids, lease_s=30)))
    return [[number, job_id.decode(), execution_id.decode(), data] for number, job_id, execution_id, data, _ in reply]


def close(pipeline: Pipeline, execution: Execution, outcome: Outcome) -> Any:
    return run(pipeline, close_call(execution, outcome))


def requeue(pipeline: Pipeline, execution: Execution, position: Any = "front") -> Any:
    return run(pipeline, requeue_call(execution, position))


def execution_of(execution_id: str = "x1", request_id: str = REQUEST_ID) -> Execution:
    return Execution(request_id, DEFAULT, "w1", execution_id)


def fetch(redis: Redis, job_id: str = REQUEST_ID) -> Job:
    return Job.fetch(job_id, connection=redis, serializer=JSONSerializer)


def rq_queue(redis: Redis, name: str = DEFAULT) -> Queue:
    return Queue(name, connection=redis, serializer=JSONSerializer)


def claimed(redis: Redis, queue: str = DEFAULT) -> list[str]:
    return [str(member) for member in decoded(redis.zrange(keys.claimed(queue), 0, -1))]
