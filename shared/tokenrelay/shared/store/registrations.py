"""RQ's registrations of workers, and what ours add: which fields they have, and the one reader of them. `registrar` has
the commands that write them.

A registration expires WORKER_TTL_S after its worker's last heartbeat, so its remaining time to live tells how long the
worker has been silent, by Redis's own clock.
"""

from __future__ import annotations

import json
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from tokenrelay.shared.redis.commands import On
from tokenrelay.shared.store.record import HashRecord, Parsed, text_or_empty, text_or_none, whole_or_zero
from tokenrelay.shared.wire import keys
from tokenrelay.shared.wire.entries import parse_object, text, whole
from tokenrelay.shared.wire.keys import Plane

if TYPE_CHECKING:
    from collections.abc import Sequence


WORKER_TTL_S: Final = 10
"""Time to live of a registration after its worker's last heartbeat."""
WORKER_SILENT_S: Final = 1.5
"""A worker without a heartbeat for this long counts as dead; it sends one every TOKENRELAY_HEARTBEAT_MS."""


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
    WIRE: Final = "wire"
    CAPABILITIES: Final = "capabilities"
    TRAINING: Final = "training"


def look(worker_key: str | bytes, fields: Sequence[str]) -> On:
    """The command that reads these fields of a worker's registration. The key may be any bytes: RQ's sets name it."""
    return On(Plane.QUEUE, ("HMGET", worker_key, *fields))


def time_left(worker_key: str | bytes) -> On:
    """The command that reads a registration's time to live, in ms: see `silent_s`, `is_alive`."""
    return On(Plane.QUEUE, ("PTTL", worker_key))


def exists(worker_key: str | bytes) -> On:
    """The command that reads whether a registration is there."""
    return On(Plane.QUEUE, ("EXISTS", worker_key))


def silent_s(left_ms: object) -> float:
    """The time since a worker's last heartbeat, from its registration's PTTL."""
    return max(0.0, WORKER_TTL_S - int(text(left_ms)) / 1000)


def is_alive(left_ms: object) -> bool:
    """Whether a worker's last heartbeat is recent, from its registration's PTTL."""
    return silent_s(left_ms) < WORKER_SILENT_S


def _models(queues: Any) -> set[str]:
    return {model for model in map(keys.model_of, text_or_empty(queues).split(",")) if model}


def _since(birth: Any) -> int:
    try:
        return int(datetime.fromisoformat(text(birth)).timestamp())
    except (ValueError, OverflowError, OSError):
        return 0


def _capabilities(value: Any) -> frozenset[str]:
    try:
        found = json.loads(value or "[]")
    except (ValueError, RecursionError):
        return frozenset()
    return frozenset(name for name in found if isinstance(name, str)) if isinstance(found, list) else frozenset()


def _defaults(value: Any) -> dict[str, Any] | None:
    return None if value is None else parse_object(WorkerField.DEFAULTS, value)


class Registration(HashRecord):
    """What a worker's registration holds, of the fields that were asked for. What can't be read counts as absent."""

    __slots__ = ()

    birth = Parsed(WorkerField.BIRTH, text_or_empty)
    models = Parsed(WorkerField.QUEUES, _models)
    """Those of our queues that it serves."""
    since = Parsed(WorkerField.BIRTH, _since)
    """When it registered, seconds since 1970; 0 where that can't be read."""
    state = Parsed(WorkerField.STATE, lambda value: text(value) if value else "?")
    hostname = Parsed(WorkerField.HOSTNAME, text_or_empty)
    pid = Parsed(WorkerField.PID, whole)
    slots = Parsed(WorkerField.SLOTS, whole)
    in_flight = Parsed(WorkerField.IN_FLIGHT, whole)
    finished = Parsed(WorkerField.FINISHED, whole_or_zero)
    failed = Parsed(WorkerField.FAILED, whole_or_zero)
    context_tokens = Parsed(WorkerField.CONTEXT_TOKENS, lambda value: whole(value) or None)
    training = Parsed(WorkerField.TRAINING, text_or_none)
    """The training trace as JSON."""
    wire = Parsed(WorkerField.WIRE, lambda value: whole(value) or 1)
    """The highest wire version of requests that it knows."""
    capabilities = Parsed(WorkerField.CAPABILITIES, _capabilities)
    """What it can do of wire version 2's larger features."""
    defaults = Parsed(WorkerField.DEFAULTS, _defaults)
    """What the model asks for where a request says nothing. Raises ProtocolError."""

    @property
    def exists(self) -> bool:
        return any(value is not None for value in self._found.values())

    @property
    def has_ended(self) -> bool:
        """Whether the worker has deregistered; its registration is kept for a while."""
        return self.has(WorkerField.DEATH)

    @property
    def has_queues(self) -> bool:
        return self.has(WorkerField.QUEUES)
