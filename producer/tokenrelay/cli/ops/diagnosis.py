"""What's wrong when nothing moves, in words, each with what to do about it. Decides from what was read, reads nothing.

The order is that in which somebody who has to repair it would look: Redis, the workers as a whole, then queue by queue.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tokenrelay.shared.redis.connections import MIN_VERSION

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from tokenrelay.cli.ops.sightings import Sighting
    from tokenrelay.cli.ops.system import Queue, Server, System

STUCK_S: Final = 10.0
"""A request that waits so long for workers that have nothing to do isn't merely about to be taken."""
_NAMED: Final = 5


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong, or at least worth knowing. `code` is for programs."""

    code: str
    message: str
    remedy: str


def diagnosed(now: System, claimed: Iterable[Sighting] = ()) -> list[Finding]:
    """All that can be seen from the system and, where they could be read, the oldest requests taken off its queues."""
    findings = [*(_of_redis(now.server) if now.server else ()), *_of_workers(now)]
    for queue in now.queues:
        if queue.waiting:
            findings += _of_queue(queue, now)
    return [*findings, *_abandoned(now, claimed), *_unseen(now)]


def all_is_well(now: System) -> str:
    """The line for a system without findings."""
    waiting, running = (sum(getattr(queue, what) for queue in now.queues) for what in ("waiting", "running"))
    alive = sum(worker.alive for worker in now.workers)
    served = f", serving {_quoted(now.models)}" if now.models else ""
    if not alive:
        return "Nothing is wrong, but nothing would move either: no worker is alive, and no request waits for one."
    return f"All is well: {waiting} waiting, {running} running, {counted(alive, 'live worker')}{served}."


def _of_redis(server: Server) -> Iterator[Finding]:
    if tuple(int(part) for part in server.version.split(".")[:2] if part.isdecimal()) < MIN_VERSION:
        message = f"Redis is version {server.version}; tokenrelay needs 6.2 or newer"
        yield Finding("redis_too_old", message, "upgrade the server")
    if server.role not in ("master", "?"):
        message = "this Redis is a read-only replica: nobody can submit here, and no worker can write"
        yield Finding("redis_is_replica", message, "give the URL of its primary, or promote it: REPLICAOF NO ONE")
    if server.eviction_policy != "noeviction":
        message = f"Redis has maxmemory-policy {server.eviction_policy}, which evicts live token streams"
        yield Finding("eviction_policy", message, "CONFIG SET maxmemory-policy noeviction, and put it into redis.conf")
    if 0 < server.limit_bytes <= server.used_bytes:
        used, limit = (f"{size / 1e6:,.1f} MB" for size in (server.used_bytes, server.limit_bytes))
        message = f"Redis is full ({used} used, maxmemory {limit}): it refuses new requests and tokens"
        yield Finding(
            "redis_full", message, "raise maxmemory, or wait until retention (TOKENRELAY_RETENTION_S) frees some"
        )
    if server.aof_failed:
        message = "Redis can't write its append-only file, and refuses writes (MISCONF)"
        yield Finding("redis_cannot_persist", message, "free some space on its disk, or see its log")
    if server.snapshot_failed:
        message = (
            "Redis's last RDB snapshot failed; unless stop-writes-on-bgsave-error is no, it refuses writes (MISCONF)"
        )
        yield Finding("redis_cannot_persist", message, "free some space on its disk, see its log, then BGSAVE")


def _of_workers(now: System) -> Iterator[Finding]:
    if now.suspended:
        until = f" for another {now.resumes_in_s:.0f} s" if now.resumes_in_s is not None else ""
        yield Finding(
            "suspended", f"RQ is suspended{until}: workers finish what they have and take nothing new", "rq resume"
        )
    for worker in now.workers:
        if not worker.alive:
            message = (
                f"worker {worker.name} on {worker.host or 'an unknown host'} is registered, but was last heard of "
            )
            message += f"{worker.silent_s:.1f} s ago: it is hung, cut off from Redis, or dead"
            yield Finding(
                "worker_silent", message, "see its log and restart it; another worker takes over its requests"
            )
    if now.gone:
        message = f"{_listed(now.gone)} went without a sign-off: killed, or cut off from Redis"
        yield Finding(
            "worker_gone", message, "see its log and start it again; a live worker tidies its registration up"
        )


def _of_queue(queue: Queue, now: System) -> Iterator[Finding]:
    serving = now.serving(queue.model)
    wait = f", the first for {queue.oldest_wait_s:.1f} s" if queue.oldest_wait_s is not None else ""
    waiting = f"{counted(queue.waiting, 'request')} {'waits' if queue.waiting == 1 else 'wait'} in {queue.name}{wait}"
    if not serving:
        served = f"those alive serve {_quoted(now.models)}" if now.models else "no worker is alive at all"
        message = f"no live worker serves the model {queue.model!r} ({served}), and {waiting}"
        yield Finding(
            "no_worker", message, f"start one: tokenrelay-worker run --served-model {queue.model}, or check the name"
        )
    elif is_busy(queue.model, now):
        slots = sum(worker.slots or 0 for worker in serving)
        message = f"all {slots} slots of {counted(len(serving), 'worker')} are taken, a normal backlog: {waiting}"
        yield Finding("all_busy", message, "wait, or start another worker")
    elif not now.suspended and (queue.oldest_wait_s or 0.0) > STUCK_S and not now.running(queue.model):
        message = f"{_listed([worker.name for worker in serving])} could take more and doesn't: {waiting}"
        remedy = "see its log: it may refuse a request that another model's weights began, or be short of KV cache"
        yield Finding("not_taken", message, remedy)


def is_busy(model: str, now: System) -> bool:
    """Whether the model's workers are full. Their reports are a heartbeat old; what is claimed is of this moment."""
    serving = now.serving(model)
    reporting = all(worker.slots is not None for worker in serving)
    slots = sum(worker.slots or 0 for worker in serving)
    return bool(serving) and reporting and (all(worker.full for worker in serving) or now.running(model) >= slots)


def _abandoned(now: System, claimed: Iterable[Sighting]) -> Iterator[Finding]:
    lost = [one for one in claimed if is_abandoned(one, now)]
    if lost:
        what = f"{counted(len(lost), 'request')} lost {'its' if len(lost) == 1 else 'their'} worker in mid-answer"
        message = f"{what} ({_listed([one.request_id for one in lost])}), and no live worker is there to go on"
        yield Finding("abandoned", message, "start a worker of the same model: it goes on at the next token")


def is_abandoned(one: Sighting, now: System) -> bool:
    """Whether nobody writes a begun request any more, and nobody alive could."""
    if one.state.terminal or (one.owned and one.lease_us > now.now_us):
        return False
    queue = next((queue for queue in now.queues if queue.name == one.queue), None)
    return queue is not None and not now.serving(queue.model)


def _unseen(now: System) -> Iterator[Finding]:
    if now.denied:
        remedy = "give TOKENRELAY_REDIS_URL a user that may, such as `operator` of deploy/users.acl"
        yield Finding("cannot_look", f"this Redis user may not see {'; nor '.join(now.denied)}", remedy)
    for name in now.broken:
        remedy = "see with TYPE who wrote rq:queue:…, tokenrelay:claimed:… and rq:workers:…, and DEL what isn't theirs"
        yield Finding("wrong_type", f"a key of the queue {name!r} is of another type: nothing can be queued", remedy)
    if now.left_out:
        yield Finding(
            "left_out", f"{counted(now.left_out, 'queue or worker')} beyond the first weren't looked at", "none"
        )


def counted(number: int, noun: str) -> str:
    """`3 requests`, `1 request`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names))


def _listed(names: Iterable[str]) -> str:
    found = list(names)
    return ", ".join(found[:_NAMED]) + (f" and {len(found) - _NAMED} more" if len(found) > _NAMED else "")
