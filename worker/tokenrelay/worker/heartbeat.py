"""The heartbeat: leases and RQ's registrations are kept alive, and what others want of this worker is heard.

Every `heartbeat_ms` it learns which requests were cancelled or taken over. An append renews its lease and says as much,
so only requests that got no token lately are asked for. It doesn't beat for a worker whose loop has stopped: a hung
worker must lose its leases.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from redis.exceptions import RedisError

from tokenrelay.shared import keys
from tokenrelay.shared.commands import Batch, Call, Reply, reply_word
from tokenrelay.shared.entries import State, text
from tokenrelay.shared.rq_jobs import extend_call, keep_call
from tokenrelay.worker.intake import RQ_LEASE_S
from tokenrelay.worker.unreadable import is_unusable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenrelay.shared.commands import Pipeline
    from tokenrelay.worker.attempts import Attempt, InFlight
    from tokenrelay.worker.publisher import Publisher

log = logging.getLogger(__name__)

RQ_EVERY_S = 15.0
JOBS_EVERY_S = 1.0
A_PART = 32
"""Requests in one pipeline: a step's tokens don't wait until Redis has seen to all."""
LEASE_SHARE = 6
"""A request that got tokens within this part of its lease needs no renewal."""


@dataclass(slots=True)
class Heartbeat:
    """Beats for the attempts in flight."""

    pipeline: Pipeline
    in_flight: InFlight
    publisher: Publisher
    lease_ms: int
    _rq_due: float = 0.0
    _jobs_due: float = 0.0

    def beat(self) -> None:
        """Renew every lease that no append has, and act on what the replies say. Redis errors are logged: the next beat
        is near."""
        now = time.monotonic()
        rq, jobs = now >= self._rq_due, now >= self._jobs_due
        attempts = self.in_flight.all()
        try:
            for first in range(0, len(attempts), A_PART):
                part = attempts[first : first + A_PART]
                self._renew(part, now, rq=rq)
                if jobs:
                    self._look_at_jobs([attempt for attempt in part if self.in_flight.get(attempt.fence)])
            self._rq_due = now + RQ_EVERY_S if rq else self._rq_due
            self._jobs_due = now + JOBS_EVERY_S if jobs else self._jobs_due
        except RedisError as error:
            self.publisher.figures.redis_errors.add("heartbeat")
            log.warning("the heartbeat didn't reach Redis: %s", error)

    def _renew(self, attempts: Sequence[Attempt], now: float, *, rq: bool) -> None:
        recently = now - self.lease_ms / 1000 / LEASE_SHARE
        silent = [each for each in attempts if each.renewed_at is None or each.renewed_at < recently]
        batch: Batch = [self._renewal(attempt) for attempt in silent]
        if rq:
            batch += [extend_call(attempt.execution, RQ_LEASE_S) for attempt in attempts]
        replies = self.pipeline.run(batch) if batch else []
        for attempt, reply in zip(silent, replies, strict=False):
            self._renewed(attempt, reply)

    def look(self, attempt: Attempt) -> None:
        """See at once whether somebody ended this request; its next heartbeat would too."""
        self._renewed(attempt, self.pipeline.run([self._renewal(attempt)])[0])

    def cancel(self, attempt: Attempt, cancelled_by: str) -> None:
        """End the request as cancelled, durably, then hear of it as everybody does."""
        call = Call("cancel", keys.of_request(attempt.request_id), (cancelled_by,))
        self._renewed(attempt, self.pipeline.run([call])[0])

    def _renewal(self, attempt: Attempt) -> Call:
        request_keys = keys.of_request(attempt.request_id)
        return Call("renew", request_keys, (attempt.fence, self.lease_ms))

    def _renewed(self, attempt: Attempt, reply: Reply) -> None:
        try:
            self._act(attempt, reply)
        except BaseException:  # noqa: BLE001  the per-request boundary; the loop publishes how it ended
            attempt.fail()

    def _act(self, attempt: Attempt, reply: Reply) -> None:
        """What a reply about one attempt asks for."""
        if is_unusable(reply):
            self.publisher.fail(attempt, reply)
            return
        if isinstance(reply, RedisError):
            self.publisher.figures.redis_errors.add("heartbeat")
            log.warning("request %s: its lease couldn't be renewed: %s", attempt.request_id, reply)
            return
        match reply_word(reply):
            case "OK" if len(reply) == 2:  # of cancel
                self.publisher.close(attempt, State.CANCELLED, "cancelled")
            case "OK":
                pass
            case "DONE":
                state = State(text(reply[1]))
                # Ended by this worker itself a moment ago: the publisher has the reply, or is about to.
                if attempt.ending is None or state is State.CANCELLED:
                    self.publisher.close(attempt, state, f"{state} by somebody else")
            case "PAST":
                attempt.overdue = True
            case "LOST":
                self.publisher.close(attempt, State.FAILED, "its request is gone from Redis")
            case "UNREADABLE":
                self.publisher.fail(attempt, reply)
            case word:
                self.publisher.abandon(attempt, word)

    def _look_at_jobs(self, attempts: Sequence[Attempt]) -> None:
        """A job that was cancelled or deleted through RQ's own API cancels its request; one that RQ's clean-up failed
        runs on, and RQ is told."""
        looks: Batch = [("HGET", keys.rq_job(attempt.request_id), "status") for attempt in attempts]
        statuses = self.pipeline.run(looks) if looks else []
        repairs: Batch = []
        for attempt, status in zip(attempts, statuses, strict=True):
            if status in (None, b"canceled") and self.in_flight.get(attempt.fence):
                self.cancel(attempt, "rq")
            elif status == b"failed":
                repairs.append(keep_call(attempt.execution, RQ_LEASE_S))
        if repairs:
            self.pipeline.run(repairs)
