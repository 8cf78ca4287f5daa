"""RQ's registrations of workers, and what ours add: their fields, the commands that write them, and their one reader.

A registration expires WORKER_TTL_S after its worker's last heartbeat, so its remaining time to live tells how long the
worker has been silent, by Redis's own clock.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final

from tokenrelay.shared.store.jobs import iso
from tokenrelay.shared.wire import keys
from tokenrelay.shared.wire.entries import parse_object, text, whole

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenrelay.shared.redis.batches import Argument, Command, Reply

WORKER_TTL_S: Final = 10
"""Time to live of a registration after its worker's last heartbeat."""
WORKER_SILENT_S: Final = 1.5
"""A worker without a heartbeat for this long counts as dead; it sends one every TOKENRELAY_HEARTBEAT_MS."""
DEAD_WORKER_TTL_S: Final = 60
"""Time to live of the registration of a worker that has ended, as in RQ."""


class WorkerField:
    """RQ's fields that we read or write, and from SLOTS on our own."""

    QUEUES: Final = "queues"
    BIRTH: Final = "birth"
    STATE: Final = "state"
    HOSTNAME: Final = "hostname"
    PID: Final = "pid"
    FINISHED: Final = "successful_job_count"
    FAILED: Final = "failed_job_count"
    LAST_HEARTBEAT: Final = "last_heartbeat"
    SHUTDOWN_REQUESTED: Final = "shutdown_requested_date"
    DEATH: Final = "death"
    IP_ADDRESS: Final = "ip_address"
    RQ_VERSION: Final = "version"
    PYTHON_VERSION: Final = "python_version"
    SLOTS: Final = "slots"
    IN_FLIGHT: Final = "in_flight"
    CONTEXT_TOKENS: Final = "context_tokens"
    DEFAULTS: Final = "defaults"
    TRAINING: Final = "training"


@dataclass(frozen=True, slots=True)
class WorkerDescription:
    """What a worker registers once. `defaults` and `training` are JSON."""

    name: str
    queues: tuple[str, ...]
    hostname: str
    pid: int
    birth: datetime
    context_tokens: int
    defaults: str
    training: str | None = None


@dataclass(frozen=True, slots=True)
class Load:
    """How many requests a worker may hold at a time, and how many it holds."""

    slots: int
    in_flight: int


def register(worker: WorkerDescription, load: Load, state: str, ip_address: str) -> list[Command]:
    """The commands that register a worker, as RQ's register_birth does. What was registered under its name is kept:
    delete it first."""
    key = keys.rq_worker(worker.name)
    fields: dict[str, Argument] = {
        WorkerField.BIRTH: iso(worker.birth),
        WorkerField.LAST_HEARTBEAT: iso(worker.birth),
        WorkerField.QUEUES: ",".join(worker.queues),
        WorkerField.PID: worker.pid,
        WorkerField.HOSTNAME: worker.hostname,
        WorkerField.IP_ADDRESS: ip_address,
        WorkerField.RQ_VERSION: version("rq"),
        WorkerField.PYTHON_VERSION: sys.version,
        WorkerField.STATE: state,
        WorkerField.SLOTS: load.slots,
        WorkerField.IN_FLIGHT: load.in_flight,
        WorkerField.CONTEXT_TOKENS: worker.context_tokens,
        WorkerField.DEFAULTS: worker.defaults,
    }
    if worker.training is not None:
        fields[WorkerField.TRAINING] = worker.training
    return [
        _set(key, fields),
        ("SADD", keys.RQ_WORKERS, key),
        *(("SADD", keys.rq_workers(queue), key) for queue in worker.queues),
        ("EXPIRE", key, WORKER_TTL_S),
    ]


def beat(worker: str, load: Load, state: str, at: datetime) -> Command:
    """The command that notes a worker's heartbeat; its reply is the number of these fields that weren't there."""
    fields: dict[str, Argument] = {
        WorkerField.SLOTS: load.slots,
        WorkerField.IN_FLIGHT: load.in_flight,
        WorkerField.STATE: state,
        WorkerField.LAST_HEARTBEAT: iso(at),
    }
    return _set(keys.rq_worker(worker), fields)


def extend(worker: str, executions_s: int) -> list[Command]:
    """The commands that extend the time to live of a worker's registration, and of its index of executions."""
    return [
        ("EXPIRE", keys.rq_worker(worker), WORKER_TTL_S),
        ("EXPIRE", keys.rq_worker_executions(worker), executions_s),
    ]


def set_state(worker: str, state: str) -> Command:
    """The command that sets what RQ shows as the worker's state."""
    return _set(keys.rq_worker(worker), {WorkerField.STATE: state})


def request_shutdown(worker: str, at: datetime) -> Command:
    """The command that notes when a worker was asked to stop."""
    return _set(keys.rq_worker(worker), {WorkerField.SHUTDOWN_REQUESTED: iso(at)})


def deregister(worker: str, queues: Sequence[str], at: datetime) -> list[Command]:
    """The commands that note a worker's end, as RQ's register_death does."""
    key = keys.rq_worker(worker)
    return [
        *(("SREM", keys.rq_workers(queue), key) for queue in queues),
        ("SREM", keys.RQ_WORKERS, key),
        _set(key, {WorkerField.DEATH: iso(at)}),
        ("EXPIRE", key, DEAD_WORKER_TTL_S),
        ("DEL", keys.rq_worker_executions(worker)),
    ]


def executions(worker: str) -> Command:
    """The command that lists what a worker holds; `parse_executions` reads its reply."""
    return ("SMEMBERS", keys.rq_worker_executions(worker))


def parse_executions(reply: Reply) -> list[tuple[str, str]]:
    """Pairs of job ID and execution ID. Raises the redis error that stands in place of the reply."""
    if isinstance(reply, Exception):
        raise reply
    pairs = [text(member).partition(":") for member in reply]
    return [(job_id, execution_id) for job_id, _, execution_id in pairs]


def _set(key: str, fields: dict[str, Argument]) -> Command:
    return ("HSET", key, *(item for pair in fields.items() for item in pair))


IDENTITY: Final = (WorkerField.HOSTNAME, WorkerField.PID, WorkerField.BIRTH, WorkerField.DEATH)
"""The fields that tell whose a registration is."""


def look(worker_key: str, fields: Sequence[str]) -> Command:
    """The command that reads these fields of a worker's registration."""
    return ("HMGET", worker_key, *fields)


def silent_s(left_ms: object) -> float:
    """The time since a worker's last heartbeat, from its registration's PTTL."""
    return max(0.0, WORKER_TTL_S - int(text(left_ms)) / 1000)


def is_alive(left_ms: object) -> bool:
    """Whether a worker's last heartbeat is recent, from its registration's PTTL."""
    return silent_s(left_ms) < WORKER_SILENT_S


class Registration:
    """What a worker's registration holds, of the fields that were asked for. A field is read when it's asked for: what
    can't be read counts as absent. KeyError for a field that wasn't asked for."""

    __slots__ = ("_found",)

    def __init__(self, fields: Sequence[str], reply: Sequence[Any]) -> None:
        self._found: dict[str, Any] = dict(zip(fields, reply, strict=True))

    @property
    def exists(self) -> bool:
        return any(value is not None for value in self._found.values())

    @property
    def has_ended(self) -> bool:
        """Whether the worker has deregistered; its registration is kept for a while."""
        return self._found[WorkerField.DEATH] is not None

    def is_of(self, worker: WorkerDescription) -> bool:
        """Whether this very worker registered it, not a namesake. Reads IDENTITY."""
        found = (self.hostname, self.pid, text(self._found[WorkerField.BIRTH] or ""))
        return found == (worker.hostname, worker.pid, iso(worker.birth))

    @property
    def has_queues(self) -> bool:
        return self._found[WorkerField.QUEUES] is not None

    @property
    def models(self) -> set[str]:
        """Those of our queues that it serves."""
        queues = text(self._found[WorkerField.QUEUES] or "").split(",")
        return {model for model in map(keys.model_of, queues) if model}

    @property
    def since(self) -> int:
        """When it registered, seconds since 1970; 0 where that can't be read."""
        try:
            return int(datetime.fromisoformat(text(self._found[WorkerField.BIRTH])).timestamp())
        except (ValueError, OverflowError, OSError):
            return 0

    @property
    def state(self) -> str:
        state = self._found[WorkerField.STATE]
        return text(state) if state else "?"

    @property
    def hostname(self) -> str:
        return text(self._found[WorkerField.HOSTNAME] or "")

    @property
    def pid(self) -> int | None:
        return whole(self._found[WorkerField.PID])

    @property
    def slots(self) -> int | None:
        return whole(self._found[WorkerField.SLOTS])

    @property
    def in_flight(self) -> int | None:
        return whole(self._found[WorkerField.IN_FLIGHT])

    @property
    def finished(self) -> int:
        return whole(self._found[WorkerField.FINISHED]) or 0

    @property
    def failed(self) -> int:
        return whole(self._found[WorkerField.FAILED]) or 0

    @property
    def context_tokens(self) -> int | None:
        return whole(self._found[WorkerField.CONTEXT_TOKENS]) or None

    @property
    def training(self) -> str | None:
        """The training trace as JSON."""
        training = self._found[WorkerField.TRAINING]
        return text(training) if training else None

    @property
    def defaults(self) -> dict[str, Any] | None:
        """What the model asks for where a request says nothing. Raises ProtocolError."""
        defaults = self._found[WorkerField.DEFAULTS]
        return None if defaults is None else parse_object(WorkerField.DEFAULTS, defaults)
