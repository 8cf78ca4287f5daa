"""The requests in `claimed`: which are off their queues, and whether a live lease holds them."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from heapq import nsmallest
from typing import TYPE_CHECKING, Final

from tokenrelay.shared.errors import ProtocolError
from tokenrelay.shared.redis.commands import server_time, server_time_us
from tokenrelay.shared.store.jobs import Execution
from tokenrelay.shared.store.record import Field, RequestRecord, look
from tokenrelay.shared.store.request_view import lease_left_s
from tokenrelay.shared.wire import keys
from tokenrelay.shared.wire.entries import text
from tokenrelay.shared.wire.keys import Plane

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from tokenrelay.shared.redis.batches import Pipeline
    from tokenrelay.shared.redis.commands import Batch

CHECK_EVERY_S: Final = 1.0
"""Interval for listing `claimed` and for reading each request's lease. A lease that expires sooner is read then."""
MAX_CHECKS: Final = 2_000
"""Requests checked in one round."""
_FIELDS: Final = (Field.STATE, Field.FENCE, Field.LEASE_US, Field.SUSPECT_US, Field.RETENTION_MS)


@dataclass(slots=True)
class ClaimedRequest:
    """A request that was taken off its queue, when it is to be checked next (monotonic), and what the last check and
    repair left."""

    execution: Execution
    taken_ms: float
    retention_s: int
    due: float = 0.0
    suspected: bool = False
    """Whether its lease has expired once: a second check confirms it."""
    done: bool = False
    """Whether it needs no more checks: it was repaired, or isn't claimed any more."""
    refusals: int = 0
    """How often Redis has refused its repair."""


@dataclass(slots=True)
class ClaimedRequests:
    """Those of a model's queues. Reads only."""

    pipeline: Pipeline
    queues: tuple[str, ...]
    retention_s: int
    """For a request whose own retention can't be read."""
    _by_job: dict[str, ClaimedRequest] = field(default_factory=dict)
    _list_due: float = 0.0

    def clear(self) -> None:
        """Forget all; the next `refresh` lists them anew."""
        self._by_job.clear()
        self._list_due = 0.0

    def refresh(self, now: float) -> None:
        """List `claimed` where that is due. Raises redis errors."""
        if now < self._list_due:
            return
        self._list_due = now + CHECK_EVERY_S
        listed: dict[str, ClaimedRequest] = {}
        for queue in self.queues:
            (claimed,) = self.pipeline.run([("ZRANGE", keys.claimed(queue), 0, -1, "WITHSCORES")])
            if isinstance(claimed, Exception):
                raise claimed
            for member, taken_ms in claimed:
                job_id = text(member)
                known = self._by_job.get(job_id)
                if known is None or (known.taken_ms, known.execution.queue) != (taken_ms, queue):
                    known = ClaimedRequest(Execution(job_id, queue), taken_ms, self.retention_s)
                listed[job_id] = known
        self._by_job = listed

    def due(self, now: float, held: Collection[str]) -> list[ClaimedRequest]:
        """Those to check now, most overdue first, without those that this worker holds itself."""
        due = [each for job_id, each in self._by_job.items() if each.due <= now and job_id not in held]
        return nsmallest(MAX_CHECKS, due, key=lambda each: each.due)

    def check(self, part: Sequence[ClaimedRequest]) -> list[ClaimedRequest]:
        """Those of them that no live lease holds, by a plain read: nearly all are held. Raises redis errors."""
        reads: Batch = [look(each.execution.job_id, _FIELDS) for each in part]
        *found, time_now = self.pipeline.run([*reads, server_time(Plane.TOKEN)])
        now_us, now = server_time_us(time_now), time.monotonic()
        unheld = []
        for each, reply in zip(part, found, strict=True):
            record = None if isinstance(reply, Exception) else RequestRecord(_FIELDS, reply)
            left_s = _lease_left_s(record, now_us) if record else 0.0
            each.due = now + (min(left_s, CHECK_EVERY_S) if left_s > 0 else CHECK_EVERY_S)
            each.suspected = False
            if left_s <= 0:
                unheld.append(each)
                if record:
                    each.retention_s = record.retention_s(self.retention_s)
        return unheld

    def drop_done(self, part: Sequence[ClaimedRequest]) -> None:
        """Forget those of them that are done."""
        for each in part:
            if each.done:
                self._by_job.pop(each.execution.job_id, None)


def _lease_left_s(record: RequestRecord, now_us: int) -> float:
    """How long the request's lease holds; 0 where only a script can tell."""
    try:
        state = record.state
    except ProtocolError:
        return 0.0
    held = record.owned and not record.suspected
    return lease_left_s(state, record.lease_us, now_us, owned=held)
