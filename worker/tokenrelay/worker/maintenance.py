"""Maintenance: RQ's keys are repaired from the requests' hashes, and requests that lost their worker go on.

Any worker may run it, several at once: each repair is atomic in its script, and a claim refuses what was repaired
twice. It walks `claimed`, not RQ's own registry: RQ's clean-up, run by anybody who looks, may fail or requeue a job.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from tokenrelay.shared import keys
from tokenrelay.shared.commands import Batch, Call, reply_word
from tokenrelay.shared.entries import State, text
from tokenrelay.shared.rq_jobs import STATUS_OF, Execution, Outcome, close_call, requeue_call
from tokenrelay.worker.intake import RQ_LEASE_S
from tokenrelay.worker.unreadable import fail_call, is_unusable, told

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenrelay.shared.commands import Pipeline, Reply
    from tokenrelay.shared.settings import WorkerSettings
    from tokenrelay.worker.attempts import InFlight
    from tokenrelay.worker.figures import Figures

log = logging.getLogger(__name__)

EVERY_S = 0.2
SUSPECTED_EVERY_S = 0.1
"""How often it looks while a lease has run out: the second look is what a lost host's requests wait for."""
REGISTRIES_EVERY_S = 2.0
UNCLAIMED_MS = 5_000
"""A job taken this long ago and still without a fence was lost between take and claim, or was released."""


@dataclass(slots=True)
class Maintenance:
    """Looks after the served model's queues."""

    pipeline: Pipeline
    queues: tuple[str, ...]
    in_flight: InFlight
    settings: WorkerSettings
    figures: Figures
    _due: float = 0.0
    _registries_due: float = 0.0
    _own: set[str] = field(default_factory=set)

    @property
    def due_in_s(self) -> float:
        """How long until the next round is due."""
        return max(self._due - time.monotonic(), 0.0)

    def run(self) -> None:
        """One round, where one is due. Raises redis errors."""
        now = time.monotonic()
        if now >= self._due:
            self._due = now + EVERY_S
            self._own = {attempt.request_id for attempt in self.in_flight.all()}
            self._look_at_claimed()
        if now >= self._registries_due:
            self._registries_due = now + REGISTRIES_EVERY_S
            for queue in self.queues:
                self._look_at_registries(queue)
            self._forget_dead_workers()

    def _look_at_claimed(self) -> None:
        """Requests that were taken off the queues, and aren't this worker's own."""
        looks: Batch = [("ZRANGE", keys.claimed(queue), 0, -1, "WITHSCORES") for queue in self.queues]
        for queue, claimed in zip(self.queues, self.pipeline.run(looks), strict=True):
            if isinstance(claimed, Exception):
                raise claimed
            pairs = [(text(job_id), score) for job_id, score in claimed]
            others = [(job_id, score) for job_id, score in pairs if job_id not in self._own]
            if others:
                self._repair_claimed(queue, others)

    def _repair_claimed(self, queue: str, others: Sequence[tuple[str, float]]) -> None:
        *found, time_now = self.pipeline.run(
            [*(("HMGET", keys.request(job_id), *_LEASE) for job_id, _ in others), ("TIME",)]
        )
        if isinstance(time_now, Exception):
            raise time_now
        now_us = time_now[0] * 1_000_000 + time_now[1]
        # Nearly all of them are alive, and seen to be without a script.
        odd = [pair for pair, fields in zip(others, found, strict=True) if not _alive(fields, now_us)]
        looks: Batch = [Call("suspect", keys.of_request(job_id), (self.settings.suspicion_ms,)) for job_id, _ in odd]
        replies = self.pipeline.run(looks) if looks else []
        repairs: Batch = []
        for (job_id, taken_ms), reply in zip(odd, replies, strict=True):
            repairs += self._repair(Execution(job_id, queue), reply, now_us / 1000 - taken_ms)
        if repairs:
            self.pipeline.run(repairs)

    def _repair(self, execution: Execution, reply: Reply, age_ms: float) -> Batch:
        if is_unusable(reply):
            log.warning("request %s is given up: %s", execution.job_id, reply)
            return [fail_call(execution.job_id, told(reply)), self._close(execution, State.FAILED)]
        if isinstance(reply, Exception):
            log.warning("request %s can't be looked at: %s", execution.job_id, reply)
            return []
        match reply_word(reply):
            case "DONE":
                return [self._close(execution, State(text(reply[1])))]
            case "LOST":
                return [self._close(execution, State.FAILED)]
            case "RELEASED":
                self.figures.recovered.add()
                log.warning("request %s lost its worker: it goes to the front of its queue", execution.job_id)
                return [requeue_call(execution, "front", datetime.now(UTC))]
            case "SUSPECT":
                self._due = min(self._due, time.monotonic() + SUSPECTED_EVERY_S)
                return []
            case "FREE" if age_ms > UNCLAIMED_MS:
                self.figures.recovered.add()
                return [requeue_call(execution, "front", datetime.now(UTC))]
            case _:
                return []

    def _forget_dead_workers(self) -> None:
        """Take workers whose registration ran out from RQ's sets: each start draws a new name."""
        sets = [keys.RQ_WORKERS, *map(keys.rq_workers, self.queues)]
        members = self.pipeline.run([("SMEMBERS", name) for name in sets])
        known = sorted({member for found in members if not isinstance(found, Exception) for member in found})
        if not known:
            return
        alive = self.pipeline.run([("EXISTS", member) for member in known])
        dead = [member for member, exists in zip(known, alive, strict=True) if exists == 0]
        if dead:
            self.pipeline.run([("SREM", name, *dead) for name in sets])

    def _close(self, execution: Execution, state: State) -> Call:
        outcome = Outcome(STATUS_OF[state], self.settings.retention_s, str(state))
        return close_call(execution, outcome, datetime.now(UTC))

    def _look_at_registries(self, queue: str) -> None:
        """Cancel what was cancelled through RQ, and drop registry members whose time is over, which RQ keeps for ever.

        RQ scores a cancelled job with the time of its cancelling; our close_call with the end of its retention.
        """
        now = datetime.now(UTC)
        canceled = keys.rq_registry("canceled", queue)
        over: Batch = [
            ("ZREMRANGEBYSCORE", keys.rq_registry(kind, queue), 0, now.timestamp()) for kind in ("finished", "failed")
        ]
        # Executions whose leases ran out long ago: whoever has such a job keeps one of its own.
        over.append(("ZREMRANGEBYSCORE", keys.rq_registry("wip", queue), 0, now.timestamp() - RQ_LEASE_S))
        found, *_ = self.pipeline.run([("ZRANGE", canceled, "-inf", now.timestamp(), "BYSCORE"), *over])
        if isinstance(found, Exception):
            raise found
        for job_id in map(text, found):
            cancel = Call("cancel", keys.of_request(job_id), ("rq",))
            drop = ("ZREM", canceled, job_id)
            close = self._close(Execution(job_id, queue), State.CANCELLED)
            self.pipeline.run([cancel, drop, close])


_LEASE: Final = ("state", "fence", "lease_us", "suspect_us")


def _alive(fields: Reply, now_us: int) -> bool:
    """Whether the request's lease holds, as far as _LEASE tells: then there is nothing to do about it."""
    if isinstance(fields, Exception):
        return False
    state, fence, lease_us, suspect_us = fields
    held = state == b"in_progress" and fence and not suspect_us
    return bool(held and (lease_us or b"").isdigit() and now_us <= int(lease_us))
