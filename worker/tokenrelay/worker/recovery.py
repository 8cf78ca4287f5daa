"""Giving a dead worker's requests to the living, at once: its leases are released and its jobs queued at the front.

For the process that saw the death. Where nobody did (a host was lost), leases run out and maintenance does the same.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from tokenrelay.shared import keys, rq_jobs
from tokenrelay.shared.commands import Batch, Call, reply_word
from tokenrelay.shared.entries import State, loggable, text
from tokenrelay.shared.rq_jobs import STATUS_OF, Execution, Note, Outcome, close_call, drop_call, iso, requeue_call

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenrelay.shared.commands import Command, Pipeline, Reply

log = logging.getLogger(__name__)

ALONE_FROM_CRASHES = 2
"""A request that took so many workers down runs alone."""


def release_worker(pipeline: Pipeline, worker: str, queues: tuple[str, ...], retention_s: int) -> int:
    """Release all that the dead `worker` held; how many requests go on. Raises redis errors: repeat it then.

    Its death is recorded as RQ does at a worker's own end. Each of its requests counts one crash.
    """
    (members,) = pipeline.run([("SMEMBERS", keys.rq_worker_executions(worker))])
    if isinstance(members, Exception):
        raise members
    pairs = [text(member).partition(":") for member in members]
    reads: Batch = [("HGET", keys.request(job_id), "queue") for job_id, _, _ in pairs]
    found = pipeline.run(reads) if reads else []
    held = [
        Execution(job_id, text(queue), worker, execution_id)
        for (job_id, _, execution_id), queue in zip(pairs, found, strict=True)
        if isinstance(queue, bytes)  # else nothing of ours: its keys run out by themselves
    ]
    continued = release(pipeline, held, crashed=True, retention_s=retention_s)
    pipeline.run([*_death(worker, queues)])
    return continued


def release(pipeline: Pipeline, held: Sequence[Execution], *, crashed: bool, retention_s: int) -> int:
    """Release what a worker holds, its own or a dead one's; how many requests go on elsewhere. Raises redis errors.

    What it no longer holds stays as its new owner, or its end, left it.
    """
    batch: Batch = []
    for execution in held:
        request_keys = keys.of_request(execution.job_id)
        batch.append(Call("release", request_keys, (execution.execution_id, int(crashed))))
        batch.append(("HMGET", request_keys[0], "fence", "retention_ms"))
    replies = pipeline.run(batch) if batch else []
    repairs: Batch = []
    continued = 0
    for execution, released, fields in zip(held, replies[::2], replies[1::2], strict=True):
        if isinstance(released, Exception) or isinstance(fields, Exception):
            log.warning("request %s can't be released: %s; its lease runs out", loggable(execution.job_id), released)
            continue
        repair = _repair(execution, released, fields, retention_s, crashed=crashed)
        continued += repair.script == "requeue"
        repairs.append(repair)
    if repairs:
        pipeline.run(repairs)
    return continued


def _repair(
    execution: Execution, released: Reply, fields: list[bytes | None], retention_s: int, *, crashed: bool
) -> Call:
    fence, stored_ms = fields
    word = reply_word(released)
    if word == "OK":
        return requeue_call(execution, "front")
    if word == "FENCED" and fence == b"":  # it was taken and not yet claimed
        return requeue_call(execution, "front", Note(alone_from=ALONE_FROM_CRASHES) if crashed else None)
    if word in ("DONE", "LOST"):
        state = State(text(released[1])) if word == "DONE" else State.FAILED
        return close_call(execution, Outcome(STATUS_OF[state], rq_jobs.retention_s(stored_ms, retention_s), str(state)))
    return drop_call(execution)


def _death(worker: str, queues: tuple[str, ...]) -> list[Command]:
    """What RQ's register_death writes."""
    key = keys.rq_worker(worker)
    return [
        *(("SREM", keys.rq_workers(queue), key) for queue in queues),
        ("SREM", keys.RQ_WORKERS, key),
        ("HSET", key, "death", iso(datetime.now(UTC))),
        ("EXPIRE", key, 60),
        ("DEL", keys.rq_worker_executions(worker)),
    ]
