"""The heartbeat: leases and RQ's registrations are kept alive, and what others want of this worker is heard.

Every `heartbeat_ms` it learns which requests were cancelled or taken over. An append renews its lease and says as much,
so only requests that got no token lately are asked for. It doesn't beat for a worker whose loop has stopped: a hung
worker must lose its leases.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, assert_never

from redis.exceptions import RedisError

from tokenrelay.shared.redis.calls import Unusable
from tokenrelay.shared.store import requests
from tokenrelay.shared.store.jobs import extend_call, keep_call, status_look
from tokenrelay.shared.store.replies import Cancelled, Done, Fenced, Lost, Past, Renewed, Unreadable
from tokenrelay.shared.wire.entries import State
from tokenrelay.worker.core.intake import RQ_LEASE_S

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenrelay.shared.redis.batches import Pipeline
    from tokenrelay.shared.redis.calls import ScriptCall
    from tokenrelay.shared.redis.commands import Batch, Reply
    from tokenrelay.shared.store.replies import CancelReply, RenewReply
    from tokenrelay.worker.core.attempts import Attempt, InFlight
    from tokenrelay.worker.core.publisher import Publisher

    _Asked = ScriptCall[RenewReply] | ScriptCall[CancelReply]

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
        self._send([(attempt, requests.renew(attempt.request_id, attempt.fence, self.lease_ms)) for attempt in silent])
        if rq and attempts:
            self.pipeline.run([extend_call(attempt.execution, RQ_LEASE_S) for attempt in attempts])

    def look(self, attempt: Attempt) -> None:
        """See at once whether somebody ended this request; its next heartbeat would too."""
        self._send([(attempt, requests.renew(attempt.request_id, attempt.fence, self.lease_ms))])

    def cancel(self, attempt: Attempt, cancelled_by: str) -> None:
        """End the request as cancelled, durably, then hear of it as everybody does."""
        self._send([(attempt, requests.cancel(attempt.request_id, cancelled_by))])

    def _send(self, asked: Sequence[tuple[Attempt, _Asked]]) -> None:
        replies = self.pipeline.run([call for _, call in asked]) if asked else []
        for (attempt, call), reply in zip(asked, replies, strict=True):
            self._receive(attempt, call, reply)

    def _receive(self, attempt: Attempt, call: _Asked, reply: Reply) -> None:
        try:
            self._act(attempt, call.parse(reply))
        except RedisError as error:
            self.publisher.figures.redis_errors.add("heartbeat")
            log.warning("request %s: its lease couldn't be renewed: %s", attempt.request_id, error)
        except BaseException:  # noqa: BLE001  the per-request boundary; the loop publishes how it ended
            attempt.fail()

    def _act(self, attempt: Attempt, reply: RenewReply | CancelReply | Unusable) -> None:
        """What a reply about one attempt asks for."""
        match reply:
            case Renewed():
                pass
            case Cancelled():
                self.publisher.close(attempt, State.CANCELLED, "cancelled")
            case Done(state):
                # Ended by this worker itself a moment ago: the publisher has the reply, or is about to.
                if attempt.ending is None or state is State.CANCELLED:
                    self.publisher.close(attempt, state, f"{state} by somebody else")
            case Past():
                attempt.overdue = True
            case Lost():
                self.publisher.close(attempt, State.FAILED, "its request is gone from Redis")
            case Unreadable() | Unusable():
                self.publisher.fail(attempt, reply)
            case Fenced():
                self.publisher.abandon(attempt, type(reply).__name__.upper())
            case _:
                assert_never(reply)

    def _look_at_jobs(self, attempts: Sequence[Attempt]) -> None:
        """A job that was cancelled or deleted through RQ's own API cancels its request; one that RQ's clean-up failed
        runs on, and RQ is told."""
        looks: Batch = [status_look(attempt.request_id) for attempt in attempts]
        statuses = self.pipeline.run(looks) if looks else []
        repairs: Batch = []
        for attempt, status in zip(attempts, statuses, strict=True):
            if status in (None, b"canceled") and self.in_flight.get(attempt.fence):
                self.cancel(attempt, "rq")
            elif status == b"failed":
                repairs.append(keep_call(attempt.execution, RQ_LEASE_S))
        if repairs:
            self.pipeline.run(repairs)
