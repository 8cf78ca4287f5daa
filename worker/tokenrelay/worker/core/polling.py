"""When the loop polls for requests: at once after a notification or a freed slot, else at an interval."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from tokenrelay.worker.core.messages import JobsQueued, Leave, Poll

if TYPE_CHECKING:
    from queue import SimpleQueue

    from tokenrelay.worker.core.messages import IntakeMessage, PollDone

EVERY_S: Final = 0.2
"""Interval of polls without a notification, which may be lost."""


@dataclass(slots=True)
class Polling:
    """One poll at a time. The loop's thread alone."""

    intake: SimpleQueue[IntakeMessage]
    leaving: threading.Event = field(default_factory=threading.Event)
    """Set once intake is to take no more jobs."""
    asked: bool = False
    """Whether a poll is running."""
    exhausted: bool = False
    """Whether the last poll of an idle worker found nothing to take."""
    unclaimed: bool = False
    """Whether intake keeps jobs that aren't claimed."""
    _due: float = 0.0
    _again: bool = False

    @property
    def found_nothing(self) -> bool:
        """Whether the last poll was an idle worker's, and there was nothing to take."""
        return self.exhausted and not self.unclaimed

    def expedite(self) -> None:
        """Poll as soon as possible: a job was enqueued, or a slot is free."""
        self._due, self._again = 0.0, self.asked

    def jobs_queued(self) -> None:
        """A job was enqueued. A running poll may be waiting for the next of a burst: it is notified, once where intake
        hasn't read that yet."""
        self.expedite()
        if self.asked and self.intake.empty():
            self.intake.put(JobsQueued())

    def poll(self, free: int, *, idle: bool) -> None:
        """Have intake claim up to `free` requests, if a poll is due."""
        if free > 0 and not self.asked and time.monotonic() >= self._due:
            self.asked = True
            self.intake.put(Poll(free, idle))

    def done(self, done: PollDone, *, found: bool) -> None:
        """Intake has answered; where it `found` something, there may be more."""
        self.asked, self.exhausted, self.unclaimed = False, done.exhausted, done.unclaimed
        self._due = 0.0 if found or self._again else time.monotonic() + EVERY_S
        self._again = False

    def leave(self) -> None:
        """Have intake end its thread. A running poll takes nothing more, and claims what it has taken."""
        self.leaving.set()
        self.intake.put(Leave())
