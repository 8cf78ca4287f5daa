"""The ends of requests on their way to RQ: posted to the keeper of its jobs, acknowledged, and written once more later.

The loop's thread alone. A request's stream is ended first, then its job: nothing is posted here before Redis has the
end of the stream.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from tokenrelay.worker.core.messages import CloseJob, DropJob

if TYPE_CHECKING:
    from queue import SimpleQueue

    from tokenrelay.shared.store.jobs import Outcome
    from tokenrelay.worker.core.attempts import Attempt
    from tokenrelay.worker.core.messages import JobMessage

CONFIRM_S: Final = 2.0
"""When an end is written once more. RQ's own clean-up, if it had read the job before, calls it failed after. And a
failover may have lost the terminal event of a request whose job was closed on the new primary: nobody would look at it
again, and this worker still has its tokens."""


@dataclass(frozen=True, slots=True)
class Closing:
    """The end of an attempt that RQ is to know. `written`: this worker wrote the end of the stream, too."""

    attempt: Attempt
    outcome: Outcome
    written: bool


@dataclass(slots=True)
class Closings:
    """What RQ hasn't acknowledged, and what is to be confirmed."""

    jobs: SimpleQueue[JobMessage]
    confirm_s: float = CONFIRM_S
    _posted: dict[str, Closing | None] = field(default_factory=dict)
    """By execution ID, what isn't acknowledged yet; None is final."""
    _unconfirmed: deque[tuple[float, Closing]] = field(default_factory=deque)
    """With when each was acknowledged."""

    @property
    def unacknowledged(self) -> bool:
        return bool(self._posted)

    @property
    def unconfirmed(self) -> bool:
        return bool(self._unconfirmed)

    def close(self, closing: Closing) -> None:
        """Have RQ's job closed, and the end confirmed later."""
        self._post(closing.attempt, CloseJob(closing.attempt.execution, closing.outcome), closing)

    def drop(self, attempt: Attempt) -> None:
        """Have RQ forget this execution of a job that is another worker's now."""
        self._post(attempt, DropJob(attempt.execution), None)

    def close_again(self, closing: Closing) -> None:
        """The end is confirmed: close the job once more, for good."""
        self._post(closing.attempt, CloseJob(closing.attempt.execution, closing.outcome), None)

    def _post(self, attempt: Attempt, message: CloseJob | DropJob, closing: Closing | None) -> None:
        self._posted[attempt.execution.execution_id] = closing
        self.jobs.put(message)

    def acknowledge(self, execution_id: str, *, accepted: bool) -> None:
        """RQ's job was closed; not `accepted`: it can't be, and is left to maintenance, since it stays claimed."""
        closing = self._posted.pop(execution_id, None)
        if closing is not None and accepted:
            self._unconfirmed.append((time.monotonic(), closing))

    def due(self) -> list[Closing]:
        """Take the ends that are to be confirmed now, where this worker wrote the end of the stream. The jobs of the
        others are closed once more."""
        acknowledged_by = time.monotonic() - self.confirm_s
        due = []
        while self._unconfirmed and self._unconfirmed[0][0] <= acknowledged_by:
            closing = self._unconfirmed.popleft()[1]
            if closing.written:
                due.append(closing)
            else:
                self.close_again(closing)
        return due

    def put_back(self, due: list[Closing]) -> None:
        """Redis is unavailable: they stay due."""
        self._unconfirmed.extendleft((0.0, closing) for closing in reversed(due))
