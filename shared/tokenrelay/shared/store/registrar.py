"""The commands that write a worker's registration, with RQ's own fields (rq 3.0), and those that list what it holds."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Final

from tokenrelay.shared.redis.commands import On
from tokenrelay.shared.store.jobs import iso
from tokenrelay.shared.store.registrations import WORKER_TTL_S, Registration, WorkerField, look, time_left
from tokenrelay.shared.wire import keys
from tokenrelay.shared.wire.entries import text
from tokenrelay.shared.wire.keys import Plane

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime

    from tokenrelay.shared.redis.commands import Argument, Command, Reply

DEAD_WORKER_TTL_S: Final = 60
"""Time to live of the registration of a worker that has ended, as in RQ."""
_IDENTITY: Final = (WorkerField.HOSTNAME, WorkerField.PID, WorkerField.BIRTH, WorkerField.DEATH)
"""The fields that tell whose a registration is."""
_NO_KEY: Final = -2
"""PTTL's reply for a key that doesn't exist."""
STARTED: Final = "started"
"""RQ's word for the state of a worker that has just registered."""
_UNKNOWN: Final = "unknown"
"""RQ's word for the IP address of a worker where Redis doesn't tell it."""


@dataclass(frozen=True, slots=True)
class WorkerDescription:
    """What a worker registers once. `defaults` and `training` are JSON; `wire` is the highest version that it knows."""

    name: str
    queues: tuple[str, ...]
    hostname: str
    pid: int
    birth: datetime
    context_tokens: int
    defaults: str
    training: str | None = None
    wire: int = 1
    capabilities: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """What a worker is doing: how many requests it may hold at a time, how many it holds, whether it's to stop."""

    slots: int
    in_flight: int
    stopping: bool

    def state(self, *, suspended: bool) -> str:
        """RQ's word for it."""
        if self.in_flight:
            return "busy"
        return "suspended" if suspended else "idle"


@dataclass(frozen=True, slots=True)
class Namesake:
    """What is registered under a worker's name.

    `left_s`: the time until it expires, 0 where it doesn't, None where nothing is registered.
    """

    registration: Registration
    left_s: float | None
    client_address: str

    def is_of(self, worker: WorkerDescription) -> bool:
        """Whether this very worker registered it, and no namesake."""
        found = self.registration
        return (found.hostname, found.pid, found.birth) == (worker.hostname, worker.pid, iso(worker.birth))


def find_namesake(worker: str) -> list[On]:
    """The commands that read what is registered under a name, and this client's address; `parse_namesake` reads their
    replies. As RQ does, they give the connection the worker's name."""
    key = keys.rq_worker(worker)
    connection = On(Plane.QUEUE, ("CLIENT", "SETNAME", worker)), On(Plane.QUEUE, ("CLIENT", "INFO"))
    return [*connection, look(key, _IDENTITY), time_left(key)]


def parse_namesake(replies: Sequence[Reply]) -> Namesake:
    """Raises the redis errors that stand in place of replies."""
    _, client, found, left_ms = replies
    raise_first_error((found, left_ms))
    left_s = None if left_ms == _NO_KEY else max(int(left_ms), 0) / 1000
    return Namesake(Registration(_IDENTITY, found), left_s, _client_address(client))


def _client_address(client_info: Reply) -> str:
    """A proxy, or a user without the right, has no CLIENT INFO."""
    if isinstance(client_info, Exception):
        return _UNKNOWN
    fields = dict(pair.partition("=")[::2] for pair in text(client_info).split())
    return fields.get("addr", _UNKNOWN)


def raise_first_error(replies: Iterable[Reply]) -> None:
    """Raise the first redis error that stands in place of a reply."""
    for reply in replies:
        if isinstance(reply, Exception):
            raise reply


def forget(worker: str) -> Command:
    """The command that deletes a registration."""
    return ("DEL", keys.rq_worker(worker))


def is_suspended() -> Command:
    """The command that asks whether workers are to take no jobs (`rq suspend`); its reply is 1 or 0."""
    return ("EXISTS", keys.RQ_SUSPENDED)


def register(worker: WorkerDescription, status: WorkerStatus, state: str, ip_address: str) -> list[Command]:
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
        WorkerField.SLOTS: status.slots,
        WorkerField.IN_FLIGHT: status.in_flight,
        WorkerField.CONTEXT_TOKENS: worker.context_tokens,
        WorkerField.DEFAULTS: worker.defaults,
        WorkerField.WIRE: worker.wire,
        WorkerField.CAPABILITIES: json.dumps(worker.capabilities),
    }
    if worker.training is not None:
        fields[WorkerField.TRAINING] = worker.training
    return [
        _set(key, fields),
        ("SADD", keys.RQ_WORKERS, key),
        *(("SADD", keys.rq_workers(queue), key) for queue in worker.queues),
        ("EXPIRE", key, WORKER_TTL_S),
    ]


def beat(worker: str, status: WorkerStatus, state: str, at: datetime) -> Command:
    """The command that notes a worker's heartbeat; its reply is the number of these fields that weren't there."""
    fields: dict[str, Argument] = {
        WorkerField.SLOTS: status.slots,
        WorkerField.IN_FLIGHT: status.in_flight,
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
