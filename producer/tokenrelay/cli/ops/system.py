"""A system's queues, workers and Redis server, read in four round trips without writes.

Uses RQ's sets, never KEYS or SCAN. What the Redis user may not read is left out and listed in `denied`. Knows nothing
of single requests.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from redis.exceptions import NoPermissionError, ResponseError

from tokenrelay.producer._core.steps import RoundTrip, check_reply, is_wrong_type
from tokenrelay.shared.redis.commands import info, server_time, server_time_us
from tokenrelay.shared.store.registrations import (
    WORKER_SILENT_S,
    Registration,
    WorkerField,
    look,
    silent_s,
    time_left,
)
from tokenrelay.shared.wire import keys
from tokenrelay.shared.wire.entries import text, whole
from tokenrelay.shared.wire.keys import Plane

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tokenrelay.producer._core.steps import Steps
    from tokenrelay.shared.redis.commands import Batch, Reply

MAX_QUEUES: Final = 100
MAX_WORKERS: Final = 200
"""Limits of one read; the rest is counted in `left_out`."""
_WORKER_FIELDS: Final = (
    WorkerField.QUEUES,
    WorkerField.STATE,
    WorkerField.SLOTS,
    WorkerField.IN_FLIGHT,
    WorkerField.HOSTNAME,
    WorkerField.FINISHED,
    WorkerField.FAILED,
)


@dataclass(frozen=True, slots=True)
class Queue:
    """One queue. `running`: claimed and not ended; `workers`: live workers that serve it."""

    name: str
    model: str
    waiting: int
    running: int
    workers: int
    oldest_wait_s: float | None
    """Age of the request at its head; None if it's empty or unreadable."""


@dataclass(frozen=True, slots=True)
class Worker:
    """One registered worker. `slots` and `in_flight` are None if it doesn't report them."""

    name: str
    models: tuple[str, ...]
    state: str
    slots: int | None
    in_flight: int | None
    silent_s: float
    """Time since its last heartbeat, on Redis's clock."""
    host: str
    finished: int
    failed: int

    @property
    def alive(self) -> bool:
        return self.silent_s < WORKER_SILENT_S

    @property
    def full(self) -> bool:
        return self.slots is not None and self.in_flight is not None and self.in_flight >= self.slots


@dataclass(frozen=True, slots=True)
class Server:
    """The Redis server, from INFO."""

    version: str
    role: str
    eviction_policy: str
    used_bytes: int
    """Memory that counts towards the limit: without replica and AOF buffers."""
    limit_bytes: int
    """0: no limit."""
    aof_failed: bool
    """The last AOF write failed: Redis refuses writes (MISCONF)."""
    snapshot_failed: bool
    """The last RDB snapshot failed: Redis refuses writes if snapshots are configured."""


@dataclass(frozen=True, slots=True)
class System:
    """The whole system. `now_us` is on the clock that requests' times are on: the token plane's."""

    now_us: int
    queues: tuple[Queue, ...]
    workers: tuple[Worker, ...]
    suspended: bool
    resumes_in_s: float | None
    """None if the suspension has no expiry."""
    server: Server | None
    denied: tuple[str, ...]
    """Descriptions of what this Redis user may not read."""
    streams_server: Server | None = None
    """The token plane's, where it has a server of its own."""
    gone: tuple[str, ...] = ()
    """Workers of these queues whose registration expired without unregistering."""
    left_out: int = 0
    """Number of queues and workers beyond the limits."""
    broken: tuple[str, ...] = ()
    """Queues with a key of the wrong type."""

    def serving(self, model: str) -> tuple[Worker, ...]:
        """The live workers of a model."""
        return tuple(worker for worker in self.workers if worker.alive and model in worker.models)

    def running(self, model: str) -> int:
        """Number of the model's requests that are claimed and haven't ended."""
        return sum(queue.running for queue in self.queues if queue.model == model)

    @property
    def models(self) -> tuple[str, ...]:
        """Models that live workers serve."""
        return tuple(sorted({model for worker in self.workers if worker.alive for model in worker.models}))


def read_system() -> Steps[System]:
    """Read the system. Raises RedisError if Redis doesn't reply."""
    queues, workers, suspended_ms, server_info = yield RoundTrip(
        [
            ("SMEMBERS", keys.RQ_QUEUES),
            ("SMEMBERS", keys.RQ_WORKERS),
            ("PTTL", keys.RQ_SUSPENDED),
            info(Plane.QUEUE),
        ]
    )
    names = sorted(text(key).removeprefix(keys.rq_queue("")) for key in check_reply(queues))
    ours = [name for name in names if keys.model_of(name)]
    lists = yield from _lists(ours[:MAX_QUEUES])
    serving = {key for found in lists for key in found.workers}
    worker_keys = sorted(serving | ({text(key) for key in check_reply(workers)} if not _denied(workers) else set()))
    seen = yield from _workers(worker_keys[:MAX_WORKERS], lists)
    now_us, streams_info, waits = yield from _streams(lists)
    alive = [worker for worker in seen if worker.alive]
    names_seen = {worker.name for worker in seen}
    denied = [
        *(["the set of all workers"] if _denied(workers) else []),
        *(["whether RQ is suspended"] if _denied(suspended_ms) else []),
        *(["INFO: Redis's memory, disk, role and eviction policy"] if isinstance(server_info, ResponseError) else []),
    ]
    paused_ms = -2 if _denied(suspended_ms) else int(check_reply(suspended_ms))
    return System(
        now_us=now_us,
        queues=tuple(
            replace(
                found.queue, workers=sum(found.queue.model in worker.models for worker in alive), oldest_wait_s=wait_s
            )
            for found, wait_s in zip(lists, waits, strict=True)
        ),
        workers=tuple(seen),
        suspended=paused_ms != -2,
        resumes_in_s=paused_ms / 1000 if paused_ms >= 0 else None,
        server=None if isinstance(server_info, ResponseError) else _server(check_reply(server_info)),
        streams_server=_other_server(server_info, streams_info),
        denied=tuple(denied),
        gone=tuple(name for name in map(_worker_name, sorted(serving)[:MAX_WORKERS]) if name not in names_seen),
        left_out=max(0, len(ours) - MAX_QUEUES) + max(0, len(worker_keys) - MAX_WORKERS),
        broken=tuple(found.queue.name for found in lists if found.broken),
    )


@dataclass(frozen=True, slots=True)
class _Found:
    """A queue, still without its head's age and its number of live workers."""

    queue: Queue
    head: str | None
    workers: frozenset[str]
    broken: bool


def _lists(names: Sequence[str]) -> Steps[list[_Found]]:
    batch: Batch = []
    for name in names:
        batch += [
            ("LLEN", keys.rq_queue(name)),
            ("ZCARD", keys.claimed(name)),
            ("LRANGE", keys.rq_queue(name), 0, 0),
            ("SMEMBERS", keys.rq_workers(name)),
        ]
    replies = (yield RoundTrip(batch)) if batch else []
    found = []
    for name, waiting, running, head, workers in zip(
        names, replies[::4], replies[1::4], replies[2::4], replies[3::4], strict=True
    ):
        first = None if _denied(head) else next(iter(_value(head, ())), None)
        serving = frozenset() if _denied(workers) else frozenset(map(text, _value(workers, ())))
        model = keys.model_of(name) or ""
        head_id = text(first) if first is not None else None
        broken = any(map(is_wrong_type, (waiting, running, workers)))
        queue = Queue(name, model, _value(waiting, 0), _value(running, 0), workers=0, oldest_wait_s=None)
        found.append(_Found(queue, head_id, serving, broken))
    return found


def _workers(worker_keys: Sequence[str], lists: Sequence[_Found]) -> Steps[list[Worker]]:
    models_of: dict[str, set[str]] = {key: set() for key in worker_keys}
    for found in lists:
        for key in found.workers & models_of.keys():
            models_of[key].add(found.queue.model)
    batch: Batch = []
    for key in worker_keys:
        batch += [look(key, _WORKER_FIELDS), time_left(key)]
    replies = iter((yield RoundTrip(batch)) if batch else [])
    workers = [_worker(key, models, next(replies), next(replies)) for key, models in models_of.items()]
    return [worker for worker in workers if worker is not None and worker.models]


def _streams(lists: Sequence[_Found]) -> Steps[tuple[int, Reply, list[float | None]]]:
    """The token plane's clock, its server's INFO, and the wait of each queue's first request by that clock."""
    heads = [found.head if found.head and keys.is_request_id(found.head) else None for found in lists]
    looks: Batch = [("XRANGE", keys.stream(head), "0-1", "0-1") for head in heads if head]
    time, streams_info, *found = yield RoundTrip([server_time(Plane.TOKEN), info(Plane.TOKEN), *looks])
    now_us, begun = server_time_us(time), iter(found)
    return now_us, streams_info, [_wait_s(next(begun), now_us) if head else None for head in heads]


def _other_server(of_queues: Reply, of_streams: Reply) -> Server | None:
    """The streams' server, where it's another one than the queues'."""
    if isinstance(of_queues, ResponseError) or isinstance(of_streams, ResponseError):
        return None
    same = of_queues.get("run_id") == check_reply(of_streams).get("run_id")
    return None if same else _server(of_streams)


def _wait_s(reply: Reply, now_us: int) -> float | None:
    if isinstance(reply, ResponseError) or not reply:
        return None
    fields = {text(name): value for name, value in dict(reply[0][1]).items()}
    queued_us = whole(fields.get("at_us"))
    return None if queued_us is None else max(0.0, (now_us - queued_us) / 1e6)


def _worker(key: str, models: set[str], fields: Reply, left_ms: Reply) -> Worker | None:
    if isinstance(fields, ResponseError) or isinstance(left_ms, ResponseError):
        return None
    registration = Registration(_WORKER_FIELDS, fields)
    if not registration.exists:
        return None
    return Worker(
        name=_worker_name(key),
        models=tuple(sorted(models | registration.models)),
        state=registration.state,
        slots=registration.slots,
        in_flight=registration.in_flight,
        silent_s=round(silent_s(left_ms), 3),
        host=registration.hostname,
        finished=registration.finished,
        failed=registration.failed,
    )


def _worker_name(key: str) -> str:
    return key.removeprefix(keys.rq_worker(""))


def _server(info: Mapping[str, Any]) -> Server:
    return Server(
        version=str(info.get("redis_version", "?")),
        role=str(info.get("role", "master")),
        eviction_policy=str(info.get("maxmemory_policy", "noeviction")),
        used_bytes=int(info.get("used_memory", 0)) - int(info.get("mem_not_counted_for_evict", 0)),
        limit_bytes=int(info.get("maxmemory", 0)),
        aof_failed=bool(info.get("aof_enabled")) and info.get("aof_last_write_status") == "err",
        snapshot_failed=info.get("rdb_last_bgsave_status") == "err",
    )


def _denied(reply: Reply) -> bool:
    return isinstance(reply, NoPermissionError)


def _value(reply: Reply, empty: Any) -> Any:
    """The reply, or `empty` for a key of the wrong type. Raises any other error reply."""
    return empty if is_wrong_type(reply) else check_reply(reply)
