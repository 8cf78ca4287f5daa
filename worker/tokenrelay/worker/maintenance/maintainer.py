"""Maintenance: requests that lost their worker are queued again, and RQ's keys are repaired from the requests' hashes.

One worker at a time maintains a model's queues: it holds a lock that expires soon after its death. It walks `claimed`,
not RQ's own registry: RQ's clean-up, run by anybody who reads that, may fail or requeue a job. A round is bounded.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, assert_never
from uuid import uuid4

from redis.exceptions import RedisError

from tokenrelay.shared.store.job_replies import LockHeld, LockTaken
from tokenrelay.shared.store.jobs import maintain_call
from tokenrelay.worker.maintenance.claimed import ClaimedRequests
from tokenrelay.worker.maintenance.repairs import Repairs
from tokenrelay.worker.rq_mirror.registries import Registries

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from tokenrelay.shared.redis.batches import Pipeline
    from tokenrelay.shared.settings import WorkerSettings
    from tokenrelay.worker.core.figures import Figures

log = logging.getLogger(__name__)

EVERY_S: Final = 0.2
REGISTRIES_EVERY_S: Final = 2.0
LOCK_MS: Final = 1_000
PART_SIZE: Final = 100
"""Requests in one pipeline: a step's tokens wait for no more than these."""


@dataclass(slots=True)
class Maintenance:
    """Maintains the served model's queues, while this worker holds their lock. `held`: the requests that this worker
    generates for, which are its loop's."""

    pipeline: Pipeline
    queues: tuple[str, ...]
    held: Callable[[], Collection[str]]
    settings: WorkerSettings
    figures: Figures
    _claimed: ClaimedRequests = field(init=False)
    _repairs: Repairs = field(init=False)
    _registries: Registries = field(init=False)
    _owner: str = field(default_factory=lambda: uuid4().hex)
    _locked_until: float = 0.0
    """When the lock is to be renewed (monotonic): at half of its time to live."""
    _due: float = 0.0
    _registries_due: float = 0.0

    def __post_init__(self) -> None:
        self._claimed = ClaimedRequests(self.pipeline, self.queues, self.settings.retention_s)
        self._repairs = Repairs(self.pipeline, self.figures, self.settings.suspicion_ms)
        self._registries = Registries(self.pipeline, self.queues, self.settings.retention_s)

    @property
    def due_in_s(self) -> float:
        """The time until the next round is due."""
        return max(self._due - time.monotonic(), 0.0)

    def run(self) -> None:
        """One round, where one is due and the lock is this worker's. Raises redis errors."""
        now = time.monotonic()
        if now < self._due:
            return
        self._due = now + EVERY_S
        if (left_s := self._lock(self._lock_ms)) > 0:
            self._claimed.clear()
            self._due = now + max(left_s, EVERY_S)
            return
        self._claimed.refresh(now)
        self._repair_due(now)
        if now >= self._registries_due:
            # Where there was more than a round's share, the next round continues.
            self._registries_due = now + (EVERY_S if self._registries.clean() else REGISTRIES_EVERY_S)

    def leave(self) -> None:
        """Release the lock, so that another worker maintains the queues at once."""
        try:
            self._lock(0)
        except RedisError as error:
            log.warning("the maintenance lock couldn't be released: %s; it expires", error)

    def _repair_due(self, now: float) -> None:
        due = self._claimed.due(now, self.held())
        for first in range(0, len(due), PART_SIZE):
            if first and self._lock(self._lock_ms) > 0:
                return
            unheld = self._claimed.check(due[first : first + PART_SIZE])
            if unheld:
                try:
                    self._repairs.repair(unheld)
                finally:  # also what was repaired before an error
                    self._claimed.drop_done(unheld)
                self._due = min([self._due, *(each.due for each in unheld if each.suspected)])

    @property
    def _lock_ms(self) -> int:
        """Far shorter than a lease: when this worker dies, another one must be here before its leases expire."""
        return min(LOCK_MS, self.settings.lease_ms // 2)

    def _lock(self, ttl_ms: int) -> float:
        """Take or renew the lock. 0 where it is this worker's, else the seconds until another's expires."""
        now = time.monotonic()
        if ttl_ms and now < self._locked_until:
            return 0.0
        reply = self.pipeline.ask(maintain_call(self.queues[0], self._owner, ttl_ms))
        match reply:
            case LockHeld():
                self._locked_until, left_ms = now + ttl_ms / 2000, 0
            case LockTaken(left_ms):
                self._locked_until = 0.0
            case _:
                assert_never(reply)
        return left_ms / 1000
