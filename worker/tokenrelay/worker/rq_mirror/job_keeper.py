"""The keeper of RQ's jobs of the requests that this worker holds, in a thread of its own.

It closes the jobs of requests that have ended, renews RQ's own leases of executions, and notices jobs that were
cancelled or deleted through RQ. It exchanges values only, and uses the queue plane alone: while that is unreachable,
tokens are still appended.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field, replace
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Final, assert_never

from redis.exceptions import RedisError

from tokenrelay.shared.redis.calls import is_unusable
from tokenrelay.shared.store.jobs import RQ_LEASE_S, close_call, drop_call, extend_call, keep_call, status_look
from tokenrelay.worker.core.messages import CloseJob, DropJob, Forget, Hold, JobClosed, JobGone, JobMessage, Leave

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tokenrelay.shared.redis.batches import Pipeline
    from tokenrelay.shared.redis.commands import Batch, Call
    from tokenrelay.shared.store.jobs import Execution
    from tokenrelay.worker.core.figures import Figures
    from tokenrelay.worker.core.messages import Message
    from tokenrelay.worker.core.status import Status

log = logging.getLogger(__name__)

EXTEND_EVERY_S: Final = 15.0
CHECK_EVERY_S: Final = 1.0
RETRY_S: Final = 0.1
CLOSE_TRIES: Final = 3
"""How often a job's closing is sent that Redis refuses for good. Then it's maintenance's: the job stays claimed."""
LEAVE_TRIES: Final = 5
"""How often a thread that ends tries to send what is left."""


@dataclass(frozen=True, slots=True)
class _Closing:
    """A job to be closed or dropped. `tries`: how often Redis refused it permanently."""

    execution: Execution
    call: Call
    tries: int = 0


@dataclass(slots=True)
class JobKeeper:
    """Keeps RQ's jobs true; `run` is its thread's. Nothing is renewed while the loop hangs."""

    pipeline: Pipeline
    status: Status
    post: Callable[[Message], None]
    figures: Figures
    inbox: SimpleQueue[JobMessage] = field(default_factory=SimpleQueue)
    _held: dict[str, Execution] = field(default_factory=dict)
    _closings: list[_Closing] = field(default_factory=list)
    _retry_at: float = 0.0
    _check_due: float = 0.0
    _extend_due: float = 0.0

    def run(self) -> None:
        """Until a Leave."""
        while self._receive():
            self._close()
            self._renew()
        for _ in range(LEAVE_TRIES):
            if not self._closings:
                return
            time.sleep(max(self._retry_at - time.monotonic(), 0.0))
            self._close()

    def _receive(self) -> bool:
        """Receive messages until the next task is due. False at a Leave."""
        due = min(self._check_due, self._retry_at) if self._closings else self._check_due
        try:
            message = self.inbox.get(timeout=max(due - time.monotonic(), 0.001))
            while self._take(message):
                message = self.inbox.get_nowait()
        except Empty:
            return True
        return False

    def _take(self, message: JobMessage) -> bool:
        match message:
            case Hold(execution):
                self._held[execution.execution_id] = execution
            case CloseJob(execution, outcome):
                self._held.pop(execution.execution_id, None)
                self._closings.append(_Closing(execution, close_call(execution, outcome)))
            case DropJob(execution):
                self._held.pop(execution.execution_id, None)
                self._closings.append(_Closing(execution, drop_call(execution)))
            case Forget(execution):
                self._held.pop(execution.execution_id, None)
            case Leave():
                return False
            case _:
                assert_never(message)
        return True

    def _close(self) -> None:
        """Close jobs. What was refused is sent again; a job that can't be closed keeps no other waiting."""
        if not self._closings or time.monotonic() < self._retry_at:
            return
        closings, self._closings = self._closings, []
        try:
            replies = self.pipeline.run([closing.call for closing in closings])
        except RedisError as error:
            self.figures.redis_errors.add("publish")
            log.warning("%s jobs couldn't be closed: %s; trying again", len(closings), error)
            replies = [error] * len(closings)
        for closing, reply in zip(closings, replies, strict=True):
            if isinstance(reply, Exception):
                self._refused(closing, reply)
            else:
                self.post(JobClosed(closing.execution.execution_id))

    def _refused(self, closing: _Closing, error: Exception) -> None:
        again = replace(closing, tries=closing.tries + is_unusable(error))
        if again.tries >= CLOSE_TRIES:
            log.warning("job %s can't be closed: %s", closing.execution.job_id, error)
            self.post(JobClosed(closing.execution.execution_id, accepted=False))
            return
        self._closings.append(again)
        self._retry_at = time.monotonic() + RETRY_S

    def _renew(self) -> None:
        """Keep the jobs of what is held. Redis errors are logged: it is tried again with the next check."""
        now = time.monotonic()
        if now < self._check_due:
            return
        self._check_due = now + CHECK_EVERY_S
        if not self._held or not self.status.alive:
            return
        try:
            if now >= self._extend_due:
                self._extend()
                self._extend_due = now + EXTEND_EVERY_S
            self._check()
        except RedisError as error:
            self.figures.redis_errors.add("heartbeat")
            log.warning("the heartbeat didn't reach RQ's keys: %s; trying again", error)

    def _extend(self) -> None:
        self._send([extend_call(execution, RQ_LEASE_S) for execution in self._held.values()])

    def _check(self) -> None:
        """Report jobs that were cancelled or deleted through RQ; correct those that RQ's clean-up marked as failed."""
        held = list(self._held.values())
        statuses = self._send([status_look(execution.job_id) for execution in held])
        for execution, status in zip(held, statuses, strict=True):
            if status in (None, b"canceled"):
                self.post(JobGone(execution.job_id))
        failed = [execution for execution, status in zip(held, statuses, strict=True) if status == b"failed"]
        self._send([keep_call(execution, RQ_LEASE_S) for execution in failed])

    def _send(self, batch: Batch) -> Sequence[object]:
        return self.pipeline.run(batch) if batch else []
