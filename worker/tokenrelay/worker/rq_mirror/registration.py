"""This worker's registration among RQ's workers: what `rq info`, dashboards and gateways show of it.

Knows nothing of requests: the worker's load is read from numbers that it is given.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from redis.exceptions import RedisError

from tokenrelay.shared.errors import SettingsError
from tokenrelay.shared.store import registrations
from tokenrelay.shared.store.registrations import IDENTITY, Load, Registration, WorkerDescription
from tokenrelay.shared.wire import keys
from tokenrelay.shared.wire.entries import text
from tokenrelay.worker.core.intake import RQ_LEASE_S

if TYPE_CHECKING:
    from collections.abc import Callable

    from tokenrelay.shared.redis.batches import Command, Pipeline, Reply

log = logging.getLogger(__name__)

STARTED: Final = "started"
BUSY: Final = "busy"
IDLE: Final = "idle"
SUSPENDED: Final = "suspended"
"""RQ's states of a worker."""
_EXECUTIONS_TTL_S: Final = RQ_LEASE_S + 60
_NO_KEY: Final = -2
"""PTTL's reply for a key that doesn't exist."""
_EXPIRY_MARGIN_S: Final = 0.1
_UNKNOWN: Final = "unknown"
"""RQ's word for the IP address of a worker where Redis doesn't tell it."""


@dataclass(frozen=True, slots=True)
class Status:
    """What the worker is doing."""

    load: Load
    stopping: bool


class WorkerRegistration:
    """Registers the worker, refreshes that with every beat, and removes it at the end.

    `status` is called with every beat, from its thread.
    """

    def __init__(self, pipeline: Pipeline, worker: WorkerDescription, status: Callable[[], Status]) -> None:
        self._pipeline = pipeline
        self._worker = worker
        self._status = status
        self._state = STARTED
        self._ip_address = _UNKNOWN
        self._shutdown_noted = False

    def register(self) -> None:
        """Register. A namesake that was killed keeps the name until its registration expires: wait for that.

        Safe to repeat after an error: a registration of this worker's own is kept. Raises redis errors, and
        SettingsError where the namesake is alive.
        """
        left_s = self._try_to_register()
        if left_s is None:
            return
        name = self._worker.name
        log.warning("the name %s is registered: waiting %.1f s for the registration to expire", name, left_s)
        time.sleep(left_s + _EXPIRY_MARGIN_S)
        if self._try_to_register() is not None:
            raise SettingsError(f"worker_name: a worker named {name!r} is alive; give another name")

    def _try_to_register(self) -> float | None:
        """None where the worker is registered, else the seconds after which the namesake's registration expires."""
        key = keys.rq_worker(self._worker.name)
        _, client, found, left_ms = self._pipeline.run(
            [
                ("CLIENT", "SETNAME", self._worker.name),
                ("CLIENT", "INFO"),
                registrations.look(key, IDENTITY),
                ("PTTL", key),
            ]
        )
        _raise_first_error([found, left_ms])
        self._ip_address = _address(client)
        registered = Registration(IDENTITY, found)
        if left_ms == _NO_KEY or registered.has_ended:
            self._write(("DEL", key))
        elif registered.is_of(self._worker):  # the reply to an earlier try was lost
            self._run([*registrations.extend(self._worker.name, _EXECUTIONS_TTL_S)])
        else:
            return max(int(left_ms), 0) / 1000
        return None

    def beat(self) -> None:
        """Extend the registration and update its state and load; register again where Redis lost it.

        Raises redis errors.
        """
        status, name, now = self._status(), self._worker.name, datetime.now(UTC)
        shutdown = status.stopping and not self._shutdown_noted
        added, *_, suspended = self._run(
            [
                registrations.beat(name, status.load, self._state, now),
                *registrations.extend(name, _EXECUTIONS_TTL_S),
                *([registrations.request_shutdown(name, now)] if shutdown else []),
                ("EXISTS", keys.RQ_SUSPENDED),
            ]
        )
        self._shutdown_noted = status.stopping
        if added:
            self._write()
        state = BUSY if status.load.in_flight else SUSPENDED if suspended else IDLE
        if state != self._state:
            self._run([registrations.set_state(name, state)])
            self._state = state

    def remove(self) -> None:
        """Deregister. Where Redis can't be reached, the registration expires by itself."""
        worker = self._worker
        try:
            self._run([*registrations.deregister(worker.name, worker.queues, datetime.now(UTC))], atomic=True)
        except RedisError as error:
            log.warning("the worker couldn't deregister: %s", error)

    def _write(self, *before: Command) -> None:
        registered = registrations.register(self._worker, self._status().load, self._state, self._ip_address)
        self._run([*before, *registered], atomic=True)

    def _run(self, batch: list[Command], *, atomic: bool = False) -> list[Reply]:
        replies = self._pipeline.run([*batch], atomic=atomic)
        _raise_first_error(replies)
        return replies


def _raise_first_error(replies: list[Reply]) -> None:
    for reply in replies:
        if isinstance(reply, Exception):
            raise reply


def _address(client_info: Reply) -> str:
    """This worker's address as Redis sees it. A proxy, or a user without the right, has no CLIENT INFO."""
    if isinstance(client_info, Exception):
        return _UNKNOWN
    fields = dict(pair.partition("=")[::2] for pair in text(client_info).split())
    return fields.get("addr", _UNKNOWN)
