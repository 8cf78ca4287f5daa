"""The poller: intake's thread. It polls the queues when the loop asks, and posts what it claimed.

A burst's prompts are prefilled together: where the worker is idle, it polls on for as long as there is more.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Final, assert_never

from redis.exceptions import RedisError

from tokenrelay.worker.core.messages import Claims, IntakeMessage, JobsQueued, Leave, Poll, PollDone

if TYPE_CHECKING:
    from collections.abc import Callable

    from tokenrelay.worker.core.messages import Message
    from tokenrelay.worker.intake.intake import Intake

log = logging.getLogger(__name__)

GATHER_S: Final = 0.05
"""How long an idle worker polls on, for as long as there is more: a burst's prompts are prefilled together, where its
first ones would have had a step of their own. Who comes alone waits for one empty poll."""
BURST_GAP_S: Final = 0.002
"""How long the next of a burst is waited for, which are two or more found together."""


@dataclass(slots=True)
class Poller:
    """Answers each Poll with Claims, as they are granted, and one PollDone. `run` is its thread's."""

    intake: Intake
    post: Callable[[Message], None]
    inbox: SimpleQueue[IntakeMessage] = field(default_factory=SimpleQueue)
    gather_s: float = GATHER_S
    burst_gap_s: float = BURST_GAP_S

    def run(self) -> None:
        """Until a Leave."""
        while not self.intake.leaving.is_set():
            match message := self.inbox.get():
                case Poll():
                    self._answer(message)
                case JobsQueued() | Leave():
                    pass  # it came behind the poll that would have waited for it; or only wakes this thread
                case _:
                    assert_never(message)

    def _answer(self, poll: Poll) -> None:
        try:
            self._poll(poll)
        except RedisError as error:
            self.intake.figures.redis_errors.add("intake")
            log.warning("intake: %s; trying again", error)
        finally:  # the loop begins what was claimed before an error, too
            self.intake.when_compiled(lambda: self.post(JobsQueued()))
            self.post(PollDone(self.intake.unclaimed, self.intake.exhausted))

    def _poll(self, poll: Poll) -> None:
        """Claim, again and again in a burst. Raises redis errors."""
        found = 0
        gather_until = time.monotonic() + self.gather_s if poll.idle else 0.0
        while True:
            claimed = self.intake.claim(poll.free - found, idle=poll.idle and not found)
            if claimed:
                found += len(claimed)
                self.post(Claims(tuple(claimed)))
            left_s = gather_until - time.monotonic()
            if self.intake.leaving.is_set() or left_s <= 0 or found >= poll.free:
                return
            if not claimed and (found < 2 or not self._is_followed(min(self.burst_gap_s, left_s))):
                return

    def _is_followed(self, within_s: float) -> bool:
        """Whether more was enqueued within the gap of a burst."""
        try:
            message = self.inbox.get(timeout=within_s)
            while isinstance(message, JobsQueued) and not self.inbox.empty():
                message = self.inbox.get()
        except Empty:
            return False
        return not isinstance(message, Leave)
