"""Maintenance: RQ's keys are repaired from the requests' hashes, and requests that lost their worker go on.

One worker at a time does it for a model's queues: it holds a lock that runs out soon after its death. Two that hold it
for a moment do no harm: each repair is atomic in its script, and a claim refuses what was repaired twice.

It walks `claimed`, not RQ's own registry: RQ's clean-up, run by anybody who looks, may fail or requeue a job. What it
does in a round is bounded, and it has a thread of its own, so that nothing here keeps a heartbeat waiting.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from heapq import nsmallest
from typing import TYPE_CHECKING, Final, assert_never
from uuid import uuid4

from redis.exceptions import RedisError

from tokenrelay.shared.errors import ProtocolError
from tokenrelay.shared.store import requests
from tokenrelay.shared.store.call import Unusable, is_unusable
from tokenrelay.shared.store.job_replies import (
    Closed,
    Deleted,
    HasDependents,
    LockHeld,
    LockTaken,
    NoJob,
    NotStarted,
    Requeued,
)
from tokenrelay.shared.store.jobs import (
    STATUS_OF,
    Execution,
    Outcome,
    close_call,
    maintain_call,
    requeue_call,
)
from tokenrelay.shared.store.record import Field, RequestRecord, look
from tokenrelay.shared.store.replies import Done, Free, Live, Lost, Released, Suspect
from tokenrelay.shared.wire import keys
from tokenrelay.shared.wire.entries import State, loggable, text
from tokenrelay.worker.core.unreadable import fail_call, told
from tokenrelay.worker.rq_mirror.dependents import enqueue_dependents
from tokenrelay.worker.rq_mirror.registries import Registries

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from tokenrelay.shared.redis.batches import Batch, Pipeline, Reply
    from tokenrelay.shared.settings import WorkerSettings
    from tokenrelay.shared.store.call import ScriptCall
    from tokenrelay.shared.store.job_replies import CloseReply, RequeueReply
    from tokenrelay.shared.store.replies import SuspectReply
    from tokenrelay.worker.core.figures import Figures

    _Seen = SuspectReply | Unusable
    _RepairCall = ScriptCall[CloseReply] | ScriptCall[RequeueReply]

log = logging.getLogger(__name__)

EVERY_S: Final = 0.2
SUSPECTED_EVERY_S: Final = 0.1
"""How soon a request is looked at again whose lease ran out: a lost host's requests wait for the second look."""
LOOK_EVERY_S: Final = 1.0
"""How often `claimed` is listed, and each request's lease read. A lease that runs out sooner is read then."""
REGISTRIES_EVERY_S: Final = 2.0
LONGEST_PAUSE_S: Final = 60.0
"""Between two tries at a repair that Redis refuses for good, such as of a key of another type."""
LOCK_MS: Final = 1_000
UNCLAIMED_MS: Final = 5_000
"""A job taken this long ago and still without a fence was lost between take and claim, or was released."""
MOST_LOOKS: Final = 2_000
"""Requests looked at in one round."""
A_PART: Final = 100
"""Requests in one pipeline: a step's tokens don't wait until Redis has seen to all."""
_FIELDS: Final = (Field.STATE, Field.FENCE, Field.LEASE_US, Field.SUSPECT_US, Field.RETENTION_MS)


@dataclass(slots=True)
class _Watched:
    """A request that was taken off its queue, and when it is to be looked at next (monotonic)."""

    execution: Execution
    taken_ms: float
    retention_s: int
    due: float = 0.0
    refused: int = 0
    """How often Redis has refused its repair."""


@dataclass(slots=True)
class Maintenance:
    """Maintains the served model's queues, while this worker holds their lock. `held`: the requests that this worker
    generates for, which are its loop's to look after."""

    pipeline: Pipeline
    queues: tuple[str, ...]
    held: Callable[[], Collection[str]]
    settings: WorkerSettings
    figures: Figures
    _registries: Registries = field(init=False)
    _owner: str = field(default_factory=lambda: uuid4().hex)
    _held_until: float = 0.0
    """When the lock is to be renewed (monotonic): half of its time is over then."""
    _due: float = 0.0
    _list_due: float = 0.0
    _registries_due: float = 0.0
    _watched: dict[str, _Watched] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._registries = Registries(self.pipeline, self.queues, self.settings.retention_s)

    @property
    def due_in_s(self) -> float:
        """How long until the next round is due."""
        return max(self._due - time.monotonic(), 0.0)

    def run(self) -> None:
        """One round, where one is due and the lock is this worker's. Raises redis errors."""
        now = time.monotonic()
        if now < self._due:
            return
        self._due = now + EVERY_S
        if (left_s := self._lock(self._lock_ms)) > 0:
            self._watched.clear()
            self._list_due = 0.0
            self._due = now + max(left_s, EVERY_S)
            return
        if now >= self._list_due:
            self._list_due = now + LOOK_EVERY_S
            self._list_claimed()
        self._look(now)
        if now >= self._registries_due:
            # Where there was more than a round's share, the next round goes on.
            self._registries_due = now + (EVERY_S if self._registries.clean() else REGISTRIES_EVERY_S)

    def leave(self) -> None:
        """Leave the queues to the other workers at once, instead of when the lock runs out."""
        try:
            self._lock(0)
        except RedisError as error:
            log.warning("the maintenance lock couldn't be released: %s; it runs out", error)

    @property
    def _lock_ms(self) -> int:
        """Far shorter than a lease: when this worker dies, another one must be here before its leases run out."""
        return min(LOCK_MS, self.settings.lease_ms // 2)

    def _lock(self, ttl_ms: int) -> float:
        """Take or renew the lock. 0 where it is this worker's, else the seconds for which it's another's."""
        now = time.monotonic()
        if ttl_ms and now < self._held_until:
            return 0.0
        reply = self.pipeline.ask(maintain_call(self.queues[0], self._owner, ttl_ms))
        match reply:
            case LockHeld():
                self._held_until, left_ms = now + ttl_ms / 2000, 0
            case LockTaken(left_ms):
                self._held_until = 0.0
            case _:
                assert_never(reply)
        return left_ms / 1000

    def _list_claimed(self) -> None:
        listed: dict[str, _Watched] = {}
        for queue in self.queues:
            (claimed,) = self.pipeline.run([("ZRANGE", keys.claimed(queue), 0, -1, "WITHSCORES")])
            if isinstance(claimed, Exception):
                raise claimed
            for member, taken_ms in claimed:
                job_id = text(member)
                watched = self._watched.get(job_id)
                if watched is None or (watched.taken_ms, watched.execution.queue) != (taken_ms, queue):
                    watched = _Watched(Execution(job_id, queue), taken_ms, self.settings.retention_s)
                listed[job_id] = watched
        self._watched = listed

    def _look(self, now: float) -> None:
        """Look at the requests that are due, and aren't this worker's own."""
        own = self.held()
        due = [each for job_id, each in self._watched.items() if each.due <= now and job_id not in own]
        due = nsmallest(MOST_LOOKS, due, key=lambda each: each.due)
        for first in range(0, len(due), A_PART):
            if first and self._lock(self._lock_ms) > 0:
                return
            self._look_at(due[first : first + A_PART])

    def _look_at(self, part: Sequence[_Watched]) -> None:
        looks: Batch = [look(each.execution.job_id, _FIELDS) for each in part]
        *found, time_now = self.pipeline.run([*looks, ("TIME",)])
        if isinstance(time_now, Exception):
            raise time_now
        now_us, now = time_now[0] * 1_000_000 + time_now[1], time.monotonic()
        odd = []
        for each, held in zip(part, found, strict=True):
            record = None if isinstance(held, Exception) else RequestRecord(_FIELDS, held)
            # Nearly all of them are alive, and seen to be without a script.
            left_s = _left_s(record, now_us) if record else 0.0
            each.due = now + (min(left_s, LOOK_EVERY_S) if left_s > 0 else LOOK_EVERY_S)
            if left_s <= 0:
                odd.append(each)
                if record:
                    each.retention_s = record.retention_s(self.settings.retention_s)
        if odd:
            self._repair(odd)

    def _repair(self, odd: Sequence[_Watched]) -> None:
        looks = [requests.suspect(each.execution.job_id, self.settings.suspicion_ms) for each in odd]
        seen = self.pipeline.run([*looks])
        # `claimed` is scored by the clock of its own server.
        scores: Batch = [("ZSCORE", keys.claimed(each.execution.queue), each.execution.job_id) for each in odd]
        *scored, time_now = self.pipeline.run([*scores, ("TIME",)])
        if isinstance(time_now, Exception):
            raise time_now
        now_ms = (time_now[0] * 1_000_000 + time_now[1]) / 1000
        todo: list[tuple[_Watched, _RepairCall, _Seen]] = []
        for each, suspicion, raw, score in zip(odd, looks, seen, scored, strict=True):
            if score is None:  # ended, or queued again, since it was listed
                self._watched.pop(each.execution.job_id, None)
                continue
            try:
                reply = suspicion.parse(raw)
            except RedisError:
                continue
            if call := self._repair_call(each, reply, now_ms):
                todo.append((each, call, reply))
        repaired = self.pipeline.run([call for _, call, _ in todo]) if todo else []
        for (each, call, cause), answer in zip(todo, repaired, strict=True):
            self._repaired(each, call, cause, answer)

    def _repair_call(self, each: _Watched, reply: _Seen, now_ms: float) -> _RepairCall | None:
        """What makes RQ agree with what the look at a request's lease said."""
        job_id = each.execution.job_id
        match reply:
            case Unusable(error):
                if not each.refused:
                    log.warning("request %s is given up: %s", loggable(job_id), error)
                self.pipeline.run([fail_call(job_id, told(reply))])
                return self._close(each, State.FAILED)
            case Done(state):
                return self._close(each, state)
            case Lost():
                return self._close(each, State.FAILED)
            case Released():
                log.warning("request %s lost its worker: it goes to the front of its queue", loggable(job_id))
                return requeue_call(each.execution, "front")
            case Suspect():
                each.due = time.monotonic() + SUSPECTED_EVERY_S
                self._due = min(self._due, each.due)
                return None
            case Free():
                is_old = now_ms - each.taken_ms > UNCLAIMED_MS
                return requeue_call(each.execution, "front") if is_old else None
            case Live():
                return None
            case _:
                assert_never(reply)

    def _repaired(self, each: _Watched, call: _RepairCall, seen: _Seen, reply: Reply) -> None:
        """Take the reply to a repair."""
        job_id, claimed = each.execution.job_id, keys.claimed(each.execution.queue)
        if isinstance(reply, Exception):
            self._refused(each, seen, reply)
            return
        answer = call.parse(reply)
        match answer:
            case Requeued():
                self.figures.recovered.add()
            case Deleted() | NotStarted("canceled"):
                # Deleted or cancelled through RQ, in the hands of a worker that died.
                self.pipeline.run([requests.cancel(job_id, "rq")])
                self.pipeline.run([self._close(each, State.CANCELLED)])
            case HasDependents():
                enqueue_dependents(self.pipeline.redis, each.execution)
                self.pipeline.run([("ZREM", claimed, job_id)])
            case NotStarted(status) if status != "queued":
                return  # RQ calls it something that is none of ours: look again
            case NotStarted() | Closed() | NoJob() | Unusable():
                pass
            case _:
                assert_never(answer)
        self._watched.pop(job_id, None)

    def _refused(self, each: _Watched, seen: _Seen, error: Exception) -> None:
        """Redis refused a repair: try again, less often each time, for as long as the request is there."""
        job_id = each.execution.job_id
        if not is_unusable(error):
            return
        if each.refused == 0:
            log.warning("job %s can't be repaired: %s; trying again, more slowly each time", loggable(job_id), error)
        each.refused += 1
        each.due = time.monotonic() + min(LOOK_EVERY_S * 2**each.refused, LONGEST_PAUSE_S)
        if isinstance(seen, Unusable | Lost):
            self.pipeline.run([("ZREM", keys.claimed(each.execution.queue), job_id)])

    @staticmethod
    def _close(each: _Watched, state: State) -> ScriptCall[CloseReply]:
        return close_call(each.execution, Outcome(STATUS_OF[state], each.retention_s, str(state)))


def _left_s(record: RequestRecord, now_us: int) -> float:
    """How long the request's lease holds; 0 where a script must look."""
    try:
        running = record.state is State.IN_PROGRESS
    except ProtocolError:
        return 0.0
    held = running and record.owned and not record.suspected
    return max((record.lease_us - now_us) / 1e6, 0.0) if held else 0.0
