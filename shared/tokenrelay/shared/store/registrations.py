"""RQ's registrations of workers, and what ours add: which fields they have, and the one reader of them. `registrar` has
the commands that write them.

A registration expires WORKER_TTL_S after its worker's last heartbeat, so its remaining time to live tells how long the
worker has been silent, by Redis's own clock.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from tokenrelay.shared.redis.commands import On
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
    def birth(self) -> str:
        return text(self._found[WorkerField.BIRTH] or "")

    @property
    def has_ended(self) -> bool:
        """Whether the worker has deregistered; its registration is kept for a while."""
        return self._found[WorkerField.DEATH] is not None

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
