"""What threads show each other without a message: values, each of which one thread alone writes, and replaces whole."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from tokenrelay.shared.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Callable

_LONGEST_S: Final = 1.0
"""More of the time between two checks is no stall."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Requests that the engine is to give tokens for, and a number that grows while it computes, prefill included."""

    in_flight: int
    progress: int


@dataclass(slots=True)
class Status:
    """The generation loop's, for metrics, the worker's registration, maintenance and the supervisor."""

    slots: int
    lease_s: float
    held: frozenset[str] = frozenset()
    """The requests that this worker holds."""
    unpublished: int = 0
    """Tokens that Redis hasn't acknowledged."""
    draining: bool = False
    finished: int = 0
    """Requests that are over for this worker."""
    progress: Progress = field(default_factory=lambda: Progress(0, 0))
    """The engine's. It stands still where either the engine or the loop hangs."""
    turned_at: float = field(default_factory=time.monotonic)
    """When the loop last completed a turn (monotonic)."""

    @property
    def alive(self) -> bool:
        """Whether the loop completed a turn within a lease's time. A hung one must lose its leases and its registration
        and maintain nothing: its requests are for others to continue."""
        return time.monotonic() - self.turned_at < self.lease_s


@dataclass(slots=True)
class Encoding:
    """Intake's, for the supervisor: a prompt whose encoding never ends is a hang, too."""

    running: bool = False
    """Whether a prompt is being encoded."""
    begun: int = 0
    """How many encodings were begun."""


@dataclass(slots=True)
class Watchdog:
    """For a worker without a supervisor: notices that nothing moves for `limit_s`, of checks that follow each other
    closely."""

    limit_s: float
    progress: Callable[[], Progress]
    _seen: int = -1
    _stalled_s: float = 0.0
    _checked_at: float = 0.0

    def check(self) -> None:
        """Raises EngineError where nothing has moved for so long."""
        progress, now = self.progress(), time.monotonic()
        # A process that was stopped itself didn't check, and nothing could move.
        passed_s = min(now - self._checked_at, _LONGEST_S)
        moved = progress.progress != self._seen or progress.in_flight == 0
        self._stalled_s = 0.0 if moved else self._stalled_s + passed_s
        self._seen, self._checked_at = progress.progress, now
        if self._stalled_s > self.limit_s:
            raise EngineError(f"the engine made no progress for {self.limit_s:g} s")
