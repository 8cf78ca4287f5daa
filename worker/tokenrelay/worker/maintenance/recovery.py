"""Recovery of a dead worker's requests, at once: its leases are released and its jobs queued at the front.

For the process that saw the death. Where nobody did (a host was lost), leases run out and maintenance does the same.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, assert_never

from tokenrelay.shared.errors import ProtocolError
from tokenrelay.shared.redis.calls import Unusable
from tokenrelay.shared.store import registrar, requests
from tokenrelay.shared.store.jobs import (
    ALONE_FROM_CRASHES,
    Execution,
    Note,
    Outcome,
    close_call,
    drop_call,
    job_status,
    requeue_call,
)
from tokenrelay.shared.store.record import Field, RequestRecord, look
from tokenrelay.shared.store.replies import Done, Fenced, Lost, Released
from tokenrelay.shared.wire.entries import State, loggable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenrelay.shared.redis.batches import Pipeline
    from tokenrelay.shared.redis.commands import Batch, Call

log = logging.getLogger(__name__)

_FIELDS: Final = (Field.FENCE, Field.RETENTION_MS)


def release_worker(pipeline: Pipeline, worker: str, queues: tuple[str, ...], retention_s: int) -> int:
    """Release all that the dead `worker` held; how many requests go on. Raises redis errors: repeat it then.

    Its death is recorded as RQ does at a worker's own end. Each of its requests counts one crash.
    """
    (reply,) = pipeline.run([registrar.executions(worker)])
    pairs = registrar.parse_executions(reply)
    reads: Batch = [look(job_id, (Field.QUEUE,)) for job_id, _ in pairs]
    found = pipeline.run(reads) if reads else []
    held = [
        Execution(job_id, record.queue, worker, execution_id)
        for (job_id, execution_id), reply in zip(pairs, found, strict=True)
        if not isinstance(reply, Exception) and (record := RequestRecord((Field.QUEUE,), reply)).has(Field.QUEUE)
    ]  # what isn't held by these is nothing of ours: its keys run out by themselves
    continued = release(pipeline, held, crashed=True, retention_s=retention_s)
    pipeline.run([*registrar.deregister(worker, queues, datetime.now(UTC))])
    return continued


def release(pipeline: Pipeline, held: Sequence[Execution], *, crashed: bool, retention_s: int) -> int:
    """Release what a worker holds, its own or a dead one's; how many requests go on elsewhere. Raises redis errors.

    What it no longer holds stays as its new owner, or its end, left it.
    """
    releases = [requests.release(execution.job_id, execution.execution_id, crashed=crashed) for execution in held]
    reads: Batch = [look(execution.job_id, _FIELDS) for execution in held]
    batch: Batch = [item for pair in zip(releases, reads, strict=True) for item in pair]
    replies = pipeline.run(batch) if batch else []
    repairs: Batch = []
    continued = 0
    for execution, release_call, reply, fields in zip(held, releases, replies[::2], replies[1::2], strict=True):
        if isinstance(reply, Exception) or isinstance(fields, Exception):
            log.warning("request %s can't be released: %s; its lease runs out", loggable(execution.job_id), reply)
            continue
        try:
            released = release_call.parse(reply)
        except ProtocolError as error:
            log.warning("request %s: %s; its lease runs out", loggable(execution.job_id), error)
            continue
        record = RequestRecord(_FIELDS, fields)
        unclaimed = isinstance(released, Fenced) and record.has(Field.FENCE) and not record.owned
        if isinstance(released, Released) or unclaimed:
            note = Note(alone_from=ALONE_FROM_CRASHES) if unclaimed and crashed else None
            repairs.append(requeue_call(execution, "front", note))
            continued += 1
        else:
            repairs.append(_given_up(execution, released, record.retention_s(retention_s)))
    if repairs:
        pipeline.run(repairs)
    return continued


def _given_up(execution: Execution, reply: Fenced | Done | Lost | Unusable, retention_s: int) -> Call:
    """What tells RQ that a job isn't this worker's any more."""
    match reply:
        case Fenced():
            return drop_call(execution)
        case Done(state):
            return close_call(execution, Outcome(job_status(state), retention_s, str(state)))
        case Lost() | Unusable():
            return close_call(execution, Outcome(job_status(State.FAILED), retention_s, str(State.FAILED)))
        case _:
            assert_never(reply)
