"""The queue plane: RQ's jobs as rq 3.0 keeps them in Redis, and the calls of the scripts that write them, with RQ's own
fields. Their replies: `job_replies`.

The request's hash is the truth; these keep `rq info`, dashboards and `Job.fetch(id, serializer=JSONSerializer)` right.
A job holds the request ID and nothing else: prompts never sit in jobs, nothing in them is imported or unpickled.
"""

from __future__ import annotations

import json
import zlib
from base64 import b64encode
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, Literal, TypeVar, assert_never

from tokenrelay.shared.redis.calls import ScriptCall
from tokenrelay.shared.store import job_replies
from tokenrelay.shared.store.scripts import script
from tokenrelay.shared.wire import keys
from tokenrelay.shared.wire.entries import State, text, whole

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tokenrelay.shared.redis.batches import Pipeline
    from tokenrelay.shared.redis.commands import Argument, Command, Reply


T = TypeVar("T")
JobStatus = Literal["finished", "failed", "stopped", "canceled"]


RQ_LEASE_S: Final = 60
"""How long RQ lets an execution go without a heartbeat. Ours is the lease in the request's hash."""
ALONE_FROM_CRASHES: Final = 2
"""A request that took so many workers down runs alone."""
MAX_JOB_DATA_BYTES: Final = 4096
_RESULT_TYPES: Final = {"finished": 1, "failed": 2, "stopped": 2}


@dataclass(frozen=True, slots=True)
class Execution:
    """One taking of a job by one worker."""

    job_id: str
    queue: str
    worker: str = ""
    execution_id: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a request ended, for RQ. `detail`: a summary as the return value, or why it failed."""

    status: JobStatus
    retention_s: int
    detail: str = ""


def job_status(state: State) -> JobStatus:
    """RQ's status of the job of a request that has ended."""
    match state:
        case State.COMPLETED | State.INCOMPLETE:
            return "finished"
        case State.FAILED | State.EXPIRED:
            return "failed"
        case State.CANCELLED:
            return "canceled"
        case State.QUEUED | State.IN_PROGRESS:
            raise ValueError(f"a request that is {state} hasn't ended")
        case _:
            assert_never(state)


def iso(at: datetime) -> str:
    """RQ's time format."""
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def job_data(request_id: str) -> bytes:
    """The job's call, as RQ's JSONSerializer writes it."""
    call = json.dumps([keys.JOB_FUNCTION, None, [request_id], {}])
    # A window as small as the call: clearing zlib's usual one takes four times as long as all the rest.
    return zlib.compress(call.encode(), wbits=zlib.MAX_WBITS - 6)


def is_our_call(data: bytes, request_id: str) -> bool:
    """Whether a job's data calls the one function that a worker runs. The allowlist: nothing is imported by name."""
    try:
        decompressor = zlib.decompressobj()
        raw = decompressor.decompress(data, MAX_JOB_DATA_BYTES)
        call = json.loads(raw)
    except (zlib.error, ValueError, RecursionError):
        return False
    return bool(call == [keys.JOB_FUNCTION, None, [request_id], {}])


@dataclass(frozen=True, slots=True)
class Enqueue:
    """What the enqueueing of one request needs. `timeout_s` is what RQ shows; our deadline ends the request.

    `behind`: its call's first request: where that one's job is, this one's is enqueued at any depth, else it isn't.
    """

    request_id: str
    queue: str
    ttl_s: int
    timeout_s: int
    retention_s: int
    depth_limit: int
    behind: str = ""


def enqueue_call(job: Enqueue, now: datetime) -> ScriptCall[job_replies.EnqueueReply]:
    """Put the request's job on its queue, with the fields of RQ's own enqueue."""
    stamp = iso(now)
    fields: dict[str, Argument] = {
        "created_at": stamp,
        "data": job_data(job.request_id),
        "success_callback_name": "",
        "failure_callback_name": "",
        "stopped_callback_name": "",
        "started_at": "",
        "ended_at": "",
        "last_heartbeat": "",
        "worker_name": "",
        "group_id": "",
        "origin": job.queue,
        "description": f"tokenrelay {job.request_id}",
        "enqueued_at": stamp,
        "timeout": job.timeout_s,
        "result_ttl": job.retention_s,
        "failure_ttl": job.retention_s,
        "status": "queued",
        "ttl": job.ttl_s,
    }
    flat = [item for pair in fields.items() for item in pair]
    behind = (keys.rq_job(job.behind),) if job.behind else ()
    script_keys = (keys.rq_job(job.request_id), keys.rq_queue(job.queue), keys.RQ_QUEUES, keys.QUEUED, *behind)
    arguments = (job.request_id, job.ttl_s, job.depth_limit, *flat)
    return ScriptCall(script("enqueue"), script_keys, arguments, job_replies.ENQUEUE)


@dataclass(frozen=True, slots=True)
class Take:
    """One taking of up to len(execution_ids) jobs from `queues`, first queue first.

    A job that must run alone is given to an `idle` worker only, and nothing with it. One that workers of this `kind`
    gave back a moment ago is left to others.
    """

    worker: str
    queues: tuple[str, ...]
    execution_ids: tuple[str, ...]
    lease_s: int
    idle: bool = True
    kind: str = ""


def any_queued(pipeline: Pipeline, queues: tuple[str, ...]) -> bool:
    """Whether a job waits in one of the queues: one command, where `take` is two. Raises redis errors.

    For idle workers, all of which each enqueue wakes.
    """
    (found,) = pipeline.run([("EXISTS", *map(keys.rq_queue, queues))])
    if isinstance(found, Exception):
        raise found
    return bool(found)


@dataclass(frozen=True, slots=True)
class Taken:
    """A job that was taken. `data`: its call, empty where it's too long; `crashed`: how many workers died with it
    before they could claim its request."""

    execution: Execution
    data: bytes
    crashed: int


def take_call(take: Take) -> ScriptCall[list[Taken]]:
    """Take jobs. Repeat it with the same execution IDs where its reply was lost."""
    script_keys = [keys.rq_worker_executions(take.worker), keys.rq_worker(take.worker), keys.RQ_SUSPENDED]
    for queue in take.queues:
        script_keys += [keys.rq_queue(queue), keys.rq_registry("wip", queue), keys.claimed(queue)]
    arguments = (keys.RQ_PREFIX, take.lease_s, take.worker, MAX_JOB_DATA_BYTES, int(take.idle), take.kind)

    def read(reply: list[list[Reply]]) -> list[Taken]:
        return [
            Taken(
                Execution(text(job_id), take.queues[number - 1], take.worker, text(execution_id)),
                data,
                whole(crashed) or 0,
            )
            for number, job_id, execution_id, data, crashed in reply
        ]

    return ScriptCall(script("take"), tuple(script_keys), (*arguments, *take.execution_ids), read)


def close_call(execution: Execution, outcome: Outcome) -> ScriptCall[job_replies.CloseReply]:
    """Make RQ agree that the job has ended. Nobody held it: an Execution without worker."""
    result = _result_fields(execution, outcome)
    return _execution_call("close", job_replies.CLOSE, execution, outcome.status, outcome.retention_s, *result)


@dataclass(frozen=True, slots=True)
class Note:
    """What the next takes are to know of a job that was given back: `alone`; or which `kind` of worker refused it and
    for how long it is left to others, twice as long each time up to `most_ms`; or that its worker died before it
    claimed the request, as it may do again: from `alone_from` such deaths on the job is given alone."""

    refused_by: str = ""
    for_ms: int = 0
    most_ms: int = 0
    alone_from: int = 0

    @property
    def arguments(self) -> tuple[Argument, ...]:
        if self.alone_from:
            return ("crashed", self.alone_from)
        if self.refused_by:
            return (f"refused:{self.refused_by}", self.for_ms, self.most_ms)
        return ("alone", self.for_ms)


def requeue_call(
    execution: Execution, position: Literal["front", "back"], note: Note | None = None
) -> ScriptCall[job_replies.RequeueReply]:
    """Give a taken job back to its queue."""
    return _execution_call("requeue", job_replies.REQUEUE, execution, position, *(note.arguments if note else ()))


def keep_call(execution: Execution, lease_s: int) -> ScriptCall[job_replies.KeepReply]:
    """Make RQ say again that a job runs which its clean-up has failed."""
    return _execution_call("keep", job_replies.KEEP, execution, lease_s)


def extend_call(execution: Execution, lease_s: int, *, waits: bool | None = None) -> ScriptCall[job_replies.Noted]:
    """Renew RQ's lease of an execution. `waits`: whether its worker only keeps the job, for which its death isn't
    counted then; None leaves that as it was noted."""
    note = () if waits is None else (int(waits),)
    return _execution_call("extend", job_replies.NOTE, execution, lease_s, *note)


def drop_call(execution: Execution) -> ScriptCall[job_replies.Noted]:
    """Forget an execution of a job that somebody else holds."""
    return _execution_call("drop", job_replies.NOTE, execution)


def maintain_call(queue: str, owner: str, ttl_ms: int) -> ScriptCall[job_replies.MaintainReply]:
    """Become, or stay, the one worker that maintains a model's queues, named by their first; 0 leaves it to others."""
    return ScriptCall(script("maintain"), (keys.maintainer(queue),), (owner, ttl_ms), job_replies.MAINTAIN)


def forget_call(sets: tuple[str, ...], workers: tuple[str, ...]) -> ScriptCall[job_replies.Forgotten]:
    """Take those of the workers out of RQ's sets whose registration ran out."""
    return ScriptCall(script("forget"), sets, workers, job_replies.FORGET)


def status_look(job_id: str) -> Command:
    """What RQ calls a job."""
    return ("HGET", keys.rq_job(job_id), "status")


def holder_look(job_id: str) -> Command:
    """The name of the worker that took a job last."""
    return ("HGET", keys.rq_job(job_id), "worker_name")


def _execution_call(name: str, read: Callable[[Reply], T], execution: Execution, *arguments: Argument) -> ScriptCall[T]:
    arguments = (execution.job_id, execution.execution_id, *arguments)
    return ScriptCall(script(name), _execution_keys(execution), arguments, read)


def _execution_keys(execution: Execution) -> tuple[str, ...]:
    job_id, queue, worker = execution.job_id, execution.queue, execution.worker
    return (
        keys.rq_job(job_id),
        keys.rq_registry("wip", queue),
        keys.rq_executions(job_id),
        keys.rq_worker_executions(worker),
        keys.claimed(queue),
        keys.rq_queue(queue),
        keys.rq_execution(job_id, execution.execution_id),
        keys.rq_registry("finished", queue),
        keys.rq_registry("failed", queue),
        keys.rq_registry("canceled", queue),
        keys.rq_results(job_id),
        keys.rq_worker(worker),
        keys.rq_dependents(job_id),
        keys.QUEUED,
    )


def _result_fields(execution: Execution, outcome: Outcome) -> Sequence[Argument]:
    """The fields of RQ's result entry (rq/results.py, Result.serialize) but the execution's, which close.lua adds; RQ
    keeps none of a cancelled job."""
    if outcome.status == "canceled":
        return ()
    fields: dict[str, Argument] = {"type": _RESULT_TYPES[outcome.status], "worker_name": execution.worker}
    if outcome.status == "finished":
        fields["return_value"] = b64encode(json.dumps(outcome.detail).encode())
    else:
        fields["exc_string"] = b64encode(zlib.compress(outcome.detail.encode()))
    return [item for pair in fields.items() for item in pair]
