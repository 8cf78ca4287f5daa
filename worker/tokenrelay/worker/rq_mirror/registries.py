"""RQ's registries and worker sets of the served queues: ends what was cancelled through RQ, drops what RQ never drops.

All scores are compared with Redis's clock: a worker's own may be wrong.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from tokenrelay.shared.redis.calls import is_unusable
from tokenrelay.shared.redis.commands import server_time
from tokenrelay.shared.store import requests
from tokenrelay.shared.store.jobs import RQ_LEASE_S, Execution, Outcome, close_call, forget_call
from tokenrelay.shared.store.record import Field, RequestRecord, look
from tokenrelay.shared.wire import keys
from tokenrelay.shared.wire.entries import loggable, text
from tokenrelay.shared.wire.keys import Plane

if TYPE_CHECKING:
    from tokenrelay.shared.redis.batches import Pipeline
    from tokenrelay.shared.redis.commands import Batch

log = logging.getLogger(__name__)

_FIELDS: Final = (Field.RETENTION_MS,)
MOST_CANCELS: Final = 500
"""Jobs cancelled through RQ that one round ends, of each queue."""
PART_SIZE: Final = 50
"""Of them in one pipeline: 5 ms of Redis's time, for which a step's tokens wait."""
_WORKERS_A_CALL: Final = 500
_MOST_MEMBERS: Final = 1_000
"""Registry members that one command drops: Redis does nothing else meanwhile."""


@dataclass(slots=True)
class Registries:
    """Those of a model's queues."""

    pipeline: Pipeline
    queues: tuple[str, ...]
    retention_s: int
    _refused: dict[str, int] = field(default_factory=dict)
    """How many cancels of a queue were refused since its front was read: the next round continues behind these, and
    after the last one begins at the front again."""

    def clean(self) -> bool:
        """One bounded round over all of them; whether there is more to do at once. Raises redis errors."""
        (clock,) = self.pipeline.run([server_time(Plane.QUEUE)])
        if isinstance(clock, Exception):
            raise clock
        more = [self._cancel(queue, clock[0]) for queue in self.queues]
        for queue in self.queues:
            self._drop_members(queue, clock[0])
        self._forget_dead_workers()
        return any(more)

    def _cancel(self, queue: str, now: int) -> bool:
        """Cancel what was cancelled through RQ; whether there was more than a round's share.

        RQ scores a cancelled job with the time of its cancelling; our close_call with the end of its retention.
        """
        canceled, behind = keys.rq_registry("canceled", queue), self._refused.pop(queue, 0)
        (found,) = self.pipeline.run([("ZRANGE", canceled, "-inf", now, "BYSCORE", "LIMIT", behind, MOST_CANCELS)])
        if is_unusable(found):
            return False
        if isinstance(found, Exception):
            raise found
        refused: list[str] = []
        for first in range(0, len(found), PART_SIZE):
            refused += self._cancel_part(queue, found[first : first + PART_SIZE])
        if refused:
            log.warning("%s cancels through RQ were refused, such as of request %s", len(refused), refused[0])
        if len(found) == MOST_CANCELS:
            self._refused[queue] = behind + len(refused)
        return len(found) == MOST_CANCELS

    def _cancel_part(self, queue: str, members: list[bytes]) -> list[str]:
        """Cancel these; those that were refused and stay, with the reason."""
        canceled = keys.rq_registry("canceled", queue)
        ids = [text(member) for member in members]
        cancels: Batch = []
        for job_id in ids:
            cancels += [requests.cancel(job_id, "rq"), look(job_id, _FIELDS)]
        replies = self.pipeline.run(cancels)
        batch: Batch = []
        refused = []
        for member, job_id, reply, held in zip(members, ids, replies[::2], replies[1::2], strict=True):
            if is_unusable(reply):
                log.warning("request %s, cancelled through RQ, is no request: %s", loggable(job_id), reply)
            elif isinstance(reply, Exception):
                refused.append(f"{loggable(job_id)}: {reply}")
                continue
            known = not isinstance(held, Exception)
            kept_s = RequestRecord(_FIELDS, held).retention_s(self.retention_s) if known else self.retention_s
            batch.append(("ZREM", canceled, member))
            batch.append(close_call(Execution(job_id, queue), Outcome("canceled", kept_s)))
        if batch:
            self.pipeline.run(batch)
        return refused

    def _drop_members(self, queue: str, now: int) -> None:
        """Drop expired members, which RQ keeps until somebody reads the registry through it."""
        # Executions whose leases expired long ago: whoever holds such a job has an execution of its own.
        ends = (("finished", now), ("failed", now), ("wip", now - RQ_LEASE_S))
        registries = [(keys.rq_registry(kind, queue), end) for kind, end in ends]
        found = self.pipeline.run(
            [("ZRANGE", key, "-inf", end, "BYSCORE", "LIMIT", 0, _MOST_MEMBERS) for key, end in registries]
        )
        over: Batch = [
            ("ZREM", key, *members)
            for (key, _), members in zip(registries, found, strict=True)
            if members and not isinstance(members, Exception)
        ]
        if over:
            self.pipeline.run(over)

    def _forget_dead_workers(self) -> None:
        """Remove workers whose registration expired from RQ's sets: each start draws a new name."""
        sets = [*map(keys.rq_workers, self.queues), keys.RQ_WORKERS]
        members = self.pipeline.run([("SMEMBERS", name) for name in sets[:-1]])
        known = sorted({member for found in members if not isinstance(found, Exception) for member in found})
        for first in range(0, len(known), _WORKERS_A_CALL):
            self.pipeline.run([forget_call(tuple(sets), tuple(known[first : first + _WORKERS_A_CALL]))])
