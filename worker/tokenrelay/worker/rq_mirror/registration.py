"""This worker's registration among RQ's workers: what `rq info`, dashboards and gateways show of it.

Knows nothing of requests: the worker's load is read from numbers that it is given.
"""

from __future__ import annotations

import logging
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from redis.exceptions import RedisError

from tokenrelay.shared.errors import SettingsError
from tokenrelay.shared.store import registrar
from tokenrelay.shared.store.jobs import RQ_LEASE_S

if TYPE_CHECKING:
    from collections.abc import Callable

    from tokenrelay.shared.redis.batches import Pipeline
    from tokenrelay.shared.redis.commands import Command, Reply
    from tokenrelay.shared.store.registrar import WorkerDescription, WorkerStatus

log = logging.getLogger(__name__)

_EXECUTIONS_TTL_S: Final = RQ_LEASE_S + 60
_EXPIRY_MARGIN_S: Final = 0.1


class WorkerRegistration:
    """Registers the worker, refreshes that with every beat, and removes it at the end.

    `status` is called with every beat, from its thread.
    """

    def __init__(self, pipeline: Pipeline, worker: WorkerDescription, status: Callable[[], WorkerStatus]) -> None:
        self._pipeline = pipeline
        self._worker = worker
        self._status = status
        self._suspended = False
        self._client_address = ""
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
        name = self._worker.name
        found = registrar.parse_namesake(self._pipeline.run([*registrar.find_namesake(name)]))
        self._client_address = found.client_address
        if found.left_s is None or found.registration.has_ended:
            self._write(registrar.STARTED, registrar.forget(name))
        elif found.is_of(self._worker):  # the reply to an earlier try was lost
            self._run([*registrar.extend(name, _EXECUTIONS_TTL_S)])
        else:
            return found.left_s
        return None

    def beat(self) -> None:
        """Extend the registration and update its state and load; register again where Redis lost it.

        `rq suspend` shows with the beat after the one that reads it. Raises redis errors.
        """
        status, name, now = self._status(), self._worker.name, datetime.now(UTC)
        state = status.state(suspended=self._suspended)
        shutdown = status.stopping and not self._shutdown_noted
        added, *_, suspended = self._run(
            [
                registrar.beat(name, status, state, now),
                *registrar.extend(name, _EXECUTIONS_TTL_S),
                *([registrar.request_shutdown(name, now)] if shutdown else []),
                registrar.is_suspended(),
            ]
        )
        self._shutdown_noted, self._suspended = status.stopping, bool(suspended)
        if added:
            self._write(state)

    def remove(self) -> None:
        """Deregister. Where Redis can't be reached, the registration expires by itself."""
        worker = self._worker
        try:
            self._run([*registrar.deregister(worker.name, worker.queues, datetime.now(UTC))], atomic=True)
        except RedisError as error:
            log.warning("the worker couldn't deregister: %s", error)

    def _write(self, state: str, *before: Command) -> None:
        commands = registrar.register(self._worker, self._status(), state, self._client_address)
        self._run([*before, *commands], atomic=True)

    def _run(self, batch: list[Command], *, atomic: bool = False) -> list[Reply]:
        replies = self._pipeline.run([*batch], atomic=atomic)
        registrar.raise_first_error(replies)
        return replies
