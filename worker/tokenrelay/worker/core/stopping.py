"""When and how the generation loop ends: at a stop, or by itself. All of it runs in the loop's thread."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tokenrelay.worker.core.messages import Claims, JobClosed

if TYPE_CHECKING:
    from tokenrelay.worker.core.holdings import Holdings
    from tokenrelay.worker.core.loop import GenerationLoop
    from tokenrelay.worker.core.polling import Polling
    from tokenrelay.worker.core.status import Status

log = logging.getLogger(__name__)

NEVER: Final = float("inf")
SETTLE_S: Final = 2.0
"""For how long a worker that ends confirms the ends that it has written."""


@dataclass(frozen=True, slots=True)
class Limits:
    """When a worker ends by itself: with its queues empty (`burst`), after so many requests, or so long without any."""

    burst: bool = False
    max_jobs: int | None = None
    max_idle_s: float | None = None


@dataclass(slots=True)
class Drain:
    """No new requests; what runs has until `ends_at` (monotonic) to finish."""

    timeout_s: float
    status: Status
    polling: Polling
    ends_at: float = NEVER

    @property
    def begun(self) -> bool:
        return self.ends_at < NEVER

    def stop(self, at: float) -> None:
        """Begin to drain; a second time: end at once."""
        if not self.begun:
            log.info("stopping: no new requests; what runs has %s s to finish", self.timeout_s)
        self.ends_at = at if self.begun else at + self.timeout_s
        self.status.draining = True
        self.polling.leave()


def is_done(limits: Limits, drain: Drain, holdings: Holdings, busy_at: float) -> bool:
    """Whether the loop is to end. `busy_at`: when it last held a request. Begins to drain once `max_jobs` are over."""
    if limits.max_jobs is not None and holdings.status.finished >= limits.max_jobs and not drain.begun:
        drain.stop(time.monotonic())
    polling = drain.polling
    idle = not (holdings.attempts or holdings.publisher.behind or polling.asked)
    if drain.begun:
        return idle or time.monotonic() >= drain.ends_at
    if limits.max_idle_s is not None and time.monotonic() - busy_at > limits.max_idle_s:
        return True
    return limits.burst and idle and polling.found_nothing


def finish(loop: GenerationLoop) -> None:
    """Take the claims that were on their way when intake ended, and publish, before what is held is handed back."""
    while not loop.inbox.empty():
        message = loop.inbox.get()
        if isinstance(message, Claims | JobClosed):
            loop.apply(message)
    loop.holdings.publish()


def settle(loop: GenerationLoop) -> None:
    """Confirm now the ends that would be confirmed later, and write again those that Redis lost: this worker won't be
    here then."""
    closings = loop.publisher.closings
    closings.confirm_s = 0.0
    ends_at = time.monotonic() + SETTLE_S
    while time.monotonic() < ends_at:
        loop.holdings.publish()
        if not (loop.holdings.attempts or loop.publisher.behind or closings.unconfirmed):
            return
        for message in loop.receive(ends_at - time.monotonic()):
            if isinstance(message, JobClosed):
                loop.apply(message)
