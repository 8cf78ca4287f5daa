"""What threads show each other without a message: values, each of which one thread alone writes, and replaces whole."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from tokenrelay.worker.core.progress import Progress


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
    """When the loop last came round (monotonic)."""

    @property
    def alive(self) -> bool:
        """Whether the loop comes round. A hung one must lose its leases and its registration, and maintain nothing: its
        requests are for others to continue."""
        return time.monotonic() - self.turned_at < self.lease_s


@dataclass(slots=True)
class Encoding:
    """Intake's, for the supervisor: a prompt that is never done is a hang, too."""

    running: bool = False
    """Whether a prompt is being encoded."""
    begun: int = 0
    """How many were."""
