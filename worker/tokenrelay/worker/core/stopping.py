"""When the loop ends: at a stop, or by itself."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import Final

log = logging.getLogger(__name__)

NEVER: Final = float("inf")


@dataclass(frozen=True, slots=True)
class Limits:
    """When a worker ends by itself: with its queues empty (`burst`), after so many requests, or so long without any."""

    burst: bool = False
    max_jobs: int | None = None
    max_idle_s: float | None = None


@dataclass(slots=True)
class Drain:
    """No new requests; what runs has until `ends_at` (monotonic) to finish. The loop's thread alone."""

    timeout_s: float
    ends_at: float = NEVER

    @property
    def begun(self) -> bool:
        return self.ends_at < NEVER

    @property
    def is_over(self) -> bool:
        return time.monotonic() >= self.ends_at

    def stop(self, at: float) -> None:
        """Begin to drain; a second time: end at once."""
        if not self.begun:
            log.info("stopping: no new requests; what runs has %s s to finish", self.timeout_s)
        self.ends_at = at if self.begun else at + self.timeout_s
