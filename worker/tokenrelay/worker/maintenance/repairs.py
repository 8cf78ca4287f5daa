"""Repairs of claimed requests without a live lease: RQ's keys are made to agree with the request's hash.

Each repair is atomic in its script, and a claim refuses what was repaired twice, so two workers that repair the same
request do no harm.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, assert_never

from redis.exceptions import RedisError

from tokenrelay.shared.errors import ProtocolError
from tokenrelay.shared.redis.calls import Unusable, is_unusable
from tokenrelay.shared.redis.commands import server_time, server_time_us
from tokenrelay.shared.store import requests
from tokenrelay.shared.store.job_replies import Closed, Deleted, HasDependents, NoJob, NotStarted, Requeued
from tokenrelay.shared.store.jobs import Outcome, close_call, job_status, requeue_call
from tokenrelay.shared.store.replies import Done, Free, Live, Lost, Released, Suspect, describe
from tokenrelay.shared.wire import keys
from tokenrelay.shared.wire.entries import State, loggable
from tokenrelay.shared.wire.keys import Plane
from tokenrelay.worker.maintenance.claimed import CHECK_EVERY_S
from tokenrelay.worker.rq_mirror.dependents import enqueue_dependents

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenrelay.shared.redis.batches import Pipeline
    from tokenrelay.shared.redis.calls import ScriptCall
    from tokenrelay.shared.redis.commands import Batch, Reply
    from tokenrelay.shared.store.job_replies import CloseReply, RequeueReply
    from tokenrelay.shared.store.replies import SuspectReply
    from tokenrelay.worker.core.figures import Figures
    from tokenrelay.worker.maintenance.claimed import ClaimedRequest

    _Suspicion = SuspectReply | Unusable
    _Repair = ScriptCall[CloseReply] | ScriptCall[RequeueReply]

log = logging.getLogger(__name__)

SUSPECTED_EVERY_S: Final = 0.1
"""Interval for checking a suspected request again: a lost host's requests wait for that."""
UNCLAIMED_MS: Final = 5_000
"""A job taken this long ago and still without a fence, or without its request, was lost between take and claim. Until
then it is in the hands of the intake that took it, which waits for a request that comes after its job."""
LONGEST_BACKOFF_S: Final = 60.0
"""Between two tries at a repair that Redis refuses permanently, such as of a key of another type."""


@dataclass(frozen=True, slots=True)
class Repairs:
    """Repairs requests that no live lease holds, and notes the result in each."""

    pipeline: Pipeline
    figures: Figures
    suspicion_ms: int

    def repair(self, unheld: Sequence[ClaimedRequest]) -> None:
        """Suspect their leases, and repair what has ended, was released, or was confirmed to be lost.

        Raises redis errors.
        """
        todo: list[tuple[ClaimedRequest, _Repair, _Suspicion]] = []
        for each, suspicion, age_ms in self._suspect(unheld):
            if call := self._repair_call(each, suspicion, age_ms):
                todo.append((each, call, suspicion))
        replies = self.pipeline.run([call for _, call, _ in todo]) if todo else []
        for (each, call, suspicion), reply in zip(todo, replies, strict=True):
            if isinstance(reply, Exception):
                self._back_off(each, suspicion, reply)
            else:
                each.done = self._settle(each, call, reply)

    def _suspect(self, unheld: Sequence[ClaimedRequest]) -> list[tuple[ClaimedRequest, _Suspicion, float]]:
        """The state of their leases, and how long ago each was taken off its queue (ms)."""
        calls = [requests.suspect(each.execution.job_id, self.suspicion_ms) for each in unheld]
        replies = self.pipeline.run([*calls])
        # `claimed` is scored by the clock of its own server.
        scores: Batch = [("ZSCORE", keys.claimed(each.execution.queue), each.execution.job_id) for each in unheld]
        *scored, time_now = self.pipeline.run([*scores, server_time(Plane.QUEUE)])
        now_ms = server_time_us(time_now) / 1000
        found = []
        for each, call, reply, score in zip(unheld, calls, replies, scored, strict=True):
            if score is None:  # ended, or queued again, since it was listed
                each.done = True
                continue
            try:
                found.append((each, call.parse(reply), now_ms - each.taken_ms))
            except (RedisError, ProtocolError):
                continue  # it is checked again
        return found

    def _repair_call(self, each: ClaimedRequest, suspicion: _Suspicion, age_ms: float) -> _Repair | None:
        """The call that makes RQ's keys agree with the request's hash."""
        job_id = each.execution.job_id
        match suspicion:
            case Unusable(error):
                if not each.refusals:
                    log.warning("request %s is given up: %s", loggable(job_id), error)
                self.pipeline.run([requests.fail(job_id, describe(suspicion))])
                return _close(each, State.FAILED)
            case Done(state):
                return _close(each, state)
            case Lost():
                return _close(each, State.FAILED) if age_ms > UNCLAIMED_MS else None
            case Released():
                log.warning("request %s lost its worker: it goes to the front of its queue", loggable(job_id))
                return requeue_call(each.execution, "front")
            case Suspect():
                each.suspected, each.due = True, time.monotonic() + SUSPECTED_EVERY_S
                return None
            case Free():
                return requeue_call(each.execution, "front") if age_ms > UNCLAIMED_MS else None
            case Live():
                return None
            case _:
                assert_never(suspicion)

    def _settle(self, each: ClaimedRequest, call: _Repair, reply: Reply) -> bool:
        """Take the reply to a repair; whether the request is done."""
        job_id = each.execution.job_id
        try:
            answer = call.parse(reply)
        except ProtocolError as error:
            log.warning("job %s: %s; it is checked again", loggable(job_id), error)
            return False
        match answer:
            case Requeued():
                self.figures.recovered.add()
            case Deleted() | NotStarted("canceled"):
                # Deleted or cancelled through RQ while a worker held it that died.
                self.pipeline.run([requests.cancel(job_id, "rq")])
                self.pipeline.run([_close(each, State.CANCELLED)])
            case HasDependents():
                enqueue_dependents(self.pipeline.servers.queue, each.execution)
                self._drop(each)
            case NotStarted(status):
                return status == "queued"  # another status isn't ours: check again
            case Closed() | NoJob() | Unusable():
                pass
            case _:
                assert_never(answer)
        return True

    def _back_off(self, each: ClaimedRequest, suspicion: _Suspicion, error: Exception) -> None:
        """Redis refused a repair: retry with exponential back-off, for as long as the request is claimed."""
        if not is_unusable(error):
            return
        if each.refusals == 0:
            log.warning("job %s can't be repaired: %s; retrying", loggable(each.execution.job_id), error)
        each.refusals += 1
        each.due = time.monotonic() + min(CHECK_EVERY_S * 2**each.refusals, LONGEST_BACKOFF_S)
        if isinstance(suspicion, Unusable | Lost):
            self._drop(each)

    def _drop(self, each: ClaimedRequest) -> None:
        self.pipeline.run([("ZREM", keys.claimed(each.execution.queue), each.execution.job_id)])


def _close(each: ClaimedRequest, state: State) -> ScriptCall[CloseReply]:
    return close_call(each.execution, Outcome(job_status(state), each.retention_s, str(state)))
