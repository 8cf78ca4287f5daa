"""Diagnosis of a system whose requests don't progress: findings, each with a remedy. Does no I/O.

Findings come in the order in which to fix them: Redis, the workers, then each queue.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from tokenrelay.cli.terminal.tables import counted
from tokenrelay.shared.redis.connections import MIN_VERSION

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from tokenrelay.cli.ops.request_summaries import RequestSummary
    from tokenrelay.cli.ops.system import Queue, Server, System

STUCK_S: Final = 10.0
"""A request that waits longer than this while workers have free slots is reported as stuck."""
_NAMED: Final = 5


@dataclass(frozen=True, slots=True)
class Finding:
    """One problem or notable fact. `code` is machine-readable."""

    code: str
    message: str
    remedy: str


def diagnose(now: System, claimed: Iterable[RequestSummary] = ()) -> list[Finding]:
    """All findings. `claimed`: the oldest claimed requests, if they could be read."""
    findings = [*(_of_redis(now.server) if now.server else ()), *_of_streams_redis(now), *_of_workers(now)]
    for queue in now.queues:
        if queue.waiting:
            findings += _of_queue(queue, now)
    return [*findings, *_abandoned(now, claimed), *_unread(now)]


def healthy_line(now: System) -> str:
    """The line shown for a system without findings."""
    waiting, running = (sum(getattr(queue, what) for queue in now.queues) for what in ("waiting", "running"))
    alive = sum(worker.alive for worker in now.workers)
    served = f", serving {_quoted(now.models)}" if now.models else ""
    if not alive:
        return "No problems found, but no worker is alive; no requests are waiting."
    return f"No problems found: {waiting} waiting, {running} running, {counted(alive, 'live worker')}{served}."


def _of_redis(server: Server) -> Iterator[Finding]:
    if tuple(int(part) for part in server.version.split(".")[:2] if part.isdecimal()) < MIN_VERSION:
        message = f"Redis is version {server.version}; tokenrelay needs 6.2 or newer"
        yield Finding("redis_too_old", message, "upgrade the server")
    if server.role not in ("master", "?"):
        message = "this Redis is a read-only replica: requests can't be submitted, and workers can't write"
        yield Finding("redis_is_replica", message, "use its primary's URL, or promote it: REPLICAOF NO ONE")
    if server.eviction_policy != "noeviction":
        message = f"Redis has maxmemory-policy {server.eviction_policy}, which evicts live token streams"
        yield Finding("eviction_policy", message, "CONFIG SET maxmemory-policy noeviction, and set it in redis.conf")
    if 0 < server.limit_bytes <= server.used_bytes:
        used, limit = (f"{size / 1e6:,.1f} MB" for size in (server.used_bytes, server.limit_bytes))
        message = f"Redis is full ({used} used, maxmemory {limit}): it refuses new requests and tokens"
        yield Finding("redis_full", message, "raise maxmemory, or wait until requests expire (TOKENRELAY_RETENTION_S)")
    if server.aof_failed:
        message = "Redis can't write its append-only file, and refuses writes (MISCONF)"
        yield Finding("redis_cannot_persist", message, "free disk space, or see Redis's log")
    if server.snapshot_failed:
        message = (
            "Redis's last RDB snapshot failed; unless stop-writes-on-bgsave-error is no, it refuses writes (MISCONF)"
        )
        yield Finding("redis_cannot_persist", message, "free disk space, see Redis's log, then run BGSAVE")


def _of_streams_redis(now: System) -> Iterator[Finding]:
    for finding in _of_redis(now.streams_server) if now.streams_server else ():
        yield replace(finding, message=f"the Redis of the streams: {finding.message}")


def _of_workers(now: System) -> Iterator[Finding]:
    if now.suspended:
        until = f" for another {now.resumes_in_s:.0f} s" if now.resumes_in_s is not None else ""
        yield Finding(
            "suspended", f"RQ is suspended{until}: workers finish their requests and take no new ones", "rq resume"
        )
    for worker in now.workers:
        if not worker.alive:
            message = (
                f"worker {worker.name} on {worker.host or 'an unknown host'} is registered, but its last heartbeat was "
            )
            message += f"{worker.silent_s:.1f} s ago: it is hung, disconnected from Redis, or dead"
            yield Finding(
                "worker_silent", message, "see its log and restart it; another worker takes over its requests"
            )
    if now.gone:
        message = f"{_listed(now.gone)} vanished without unregistering: killed, or disconnected from Redis"
        yield Finding("worker_gone", message, "see its log and restart it; a live worker removes its registration")


def _of_queue(queue: Queue, now: System) -> Iterator[Finding]:
    serving = now.serving(queue.model)
    wait = f", the first for {queue.oldest_wait_s:.1f} s" if queue.oldest_wait_s is not None else ""
    waiting = f"{counted(queue.waiting, 'request')} {'waits' if queue.waiting == 1 else 'wait'} in {queue.name}{wait}"
    if not serving:
        served = f"live workers serve {_quoted(now.models)}" if now.models else "no worker is alive"
        message = f"no live worker serves the model {queue.model!r} ({served}), and {waiting}"
        yield Finding(
            "no_worker", message, f"start one: tokenrelay-worker run --served-model {queue.model}, or check the name"
        )
    elif is_busy(queue.model, now):
        slots = sum(worker.slots or 0 for worker in serving)
        message = f"all {slots} slots of {counted(len(serving), 'worker')} are in use, a normal backlog: {waiting}"
        yield Finding("all_busy", message, "wait, or start another worker")
    elif not now.suspended and (queue.oldest_wait_s or 0.0) > STUCK_S and not now.running(queue.model):
        message = f"{_listed([worker.name for worker in serving])} has free slots but takes no requests: {waiting}"
        remedy = "see its log: the request may have started on other model weights, or the KV cache may be too small"
        yield Finding("not_taken", message, remedy)


def is_busy(model: str, now: System) -> bool:
    """Whether all slots are in use: by the workers' last heartbeats, or by the number of claimed requests."""
    serving = now.serving(model)
    reporting = all(worker.slots is not None for worker in serving)
    slots = sum(worker.slots or 0 for worker in serving)
    return bool(serving) and reporting and (all(worker.full for worker in serving) or now.running(model) >= slots)


def _abandoned(now: System, claimed: Iterable[RequestSummary]) -> Iterator[Finding]:
    lost = [one for one in claimed if is_abandoned(one, now)]
    if lost:
        what = f"{counted(len(lost), 'request')} lost {'its' if len(lost) == 1 else 'their'} worker mid-answer"
        message = f"{what} ({_listed([one.request_id for one in lost])}), and no live worker serves the model"
        yield Finding("abandoned", message, "start a worker with the same model: it resumes at the next token")


def is_abandoned(one: RequestSummary, now: System) -> bool:
    """Whether a started request has no owner, and no live worker serves its model."""
    if one.state.terminal or one.lease_left_s(now.now_us):
        return False
    queue = next((queue for queue in now.queues if queue.name == one.queue), None)
    return queue is not None and not now.serving(queue.model)


def _unread(now: System) -> Iterator[Finding]:
    if now.denied:
        remedy = "set TOKENRELAY_REDIS_URL to a user with more permissions, such as `operator` in deploy/users.acl"
        yield Finding("cannot_look", f"this Redis user may not read {'; nor '.join(now.denied)}", remedy)
    for name in now.broken:
        remedy = "check rq:queue:…, tokenrelay:claimed:… and rq:workers:… with TYPE, and DEL the key of the wrong type"
        yield Finding("wrong_type", f"a key of the queue {name!r} has the wrong type: requests can't be queued", remedy)
    if now.left_out:
        yield Finding("left_out", f"{counted(now.left_out, 'queue or worker')} weren't read: too many", "none")


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names))


def _listed(names: Iterable[str]) -> str:
    found = list(names)
    return ", ".join(found[:_NAMED]) + (f" and {len(found) - _NAMED} more" if len(found) > _NAMED else "")
