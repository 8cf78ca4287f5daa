"""Taking: jobs off their queues, first queue first, until as many are there as can be claimed.

Owns what was taken and isn't claimed: nothing of it is forgotten over an error.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final
from uuid import uuid4

from tokenrelay.shared.store.jobs import RQ_LEASE_S, Take, any_queued, extend_call, take_call
from tokenrelay.worker.intake.job import Job

if TYPE_CHECKING:
    from collections.abc import Iterable
    from threading import Event

    from tokenrelay.shared.redis.batches import Pipeline
    from tokenrelay.shared.store.jobs import Execution
    from tokenrelay.worker.intake.reading import Reading

MISSING_S: Final = 1.0
"""How long a job's request is waited for that isn't there."""
MOST_MISSING: Final = 256
"""Jobs without a request that wait at a time. They take up no slots; each that is closed makes room for another."""
MISSING_EVERY_S: Final = 0.1
"""How often they are read again, at most."""
COMPILING_S: Final = 3.0
"""How long a job waits for its grammar before others may have it: less than `UNCLAIMED_MS` of `maintenance.repairs`."""


@dataclass(slots=True)
class Taking:
    """Takes jobs from `queues` for the worker named `worker`, of this `kind`."""

    pipeline: Pipeline
    reading: Reading
    worker: str
    queues: tuple[str, ...]
    kind: str
    leaving: Event
    ready: deque[Job] = field(default_factory=deque)
    """Taken and read, not yet claimed: kept over an error, so that a taken job is never forgotten."""
    missing: list[Job] = field(default_factory=list)
    """Taken, their requests not there yet. Read again at `_missing_due`."""
    lost: list[Job] = field(default_factory=list)
    """Taken, their requests never came: to be closed."""
    waiting: list[Job] = field(default_factory=list)
    """Taken and read: their grammars are being compiled, or no slot is free. They take up no slots."""
    deferred: list[Job] = field(default_factory=list)
    """Taken and read, to be put back in their queues for a moment."""
    _missing_due: float = 0.0
    _execution_ids: tuple[str, ...] = ()
    """Of a take whose reply didn't come: repeated with the same IDs, it gives the same jobs."""

    @property
    def unclaimed(self) -> bool:
        """Whether jobs were taken, or may have been, that aren't claimed."""
        return bool(self.taken or self._execution_ids)

    @property
    def taken(self) -> list[Execution]:
        """Of the jobs that aren't claimed."""
        return [job.execution for job in (*self.ready, *self.missing, *self.lost, *self.waiting, *self.deferred)]

    def fill(self, limit: int, *, idle: bool) -> None:
        """Have up to `limit` jobs ready, and the grammars of those that wait compiled. Raises redis errors."""
        self._fill(limit, idle=idle)
        self._compile()

    def _fill(self, limit: int, *, idle: bool) -> None:
        if self.ready:  # a claim of them failed
            self._sort(list(self.ready), limit)
            return
        if time.monotonic() >= self._missing_due:
            self.ready, self.missing = deque(self.missing), []
            self._missing_due = time.monotonic() + MISSING_EVERY_S
            self._sort(list(self.ready), limit)
        waiting, self.waiting = self.waiting, []
        self._place(waiting, limit)
        while (room := min(limit - len(self.ready), self._room)) > 0:
            kept = len(self.ready)
            self._take(room, idle=idle and not kept)
            taken = list(self.ready)[kept:]
            self._sort(taken, limit)
            if len(taken) < room:
                return

    def _sort(self, jobs: list[Job], limit: int) -> None:
        """Read jobs of `ready`, and set those apart whose request isn't there.

        A producer of an earlier release may enqueue a moment before it creates the request.
        """
        if not jobs:
            return
        self.reading.read(jobs)
        found, self.ready = self.ready, deque()
        self._place(found, limit)

    def _place(self, jobs: Iterable[Job], limit: int) -> None:
        """Have those of the jobs ready that can be claimed, up to `limit`, behind the ones that are."""
        now = time.monotonic()
        here: list[Job] = []
        for job in jobs:
            if job.missing_since is not None:
                (self.missing if job.missing_since > now - MISSING_S else self.lost).append(job)
            elif not self.reading.is_compiled(job):
                self._await(job, now)
            elif job.deferred:
                self.deferred.append(job)
            else:
                here.append(job)
        room = limit - len(self.ready)
        self.ready += here[:room]
        self.waiting += here[room:]

    def _await(self, job: Job, now: float) -> None:
        """Keep the job until its grammar is compiled, but not for long."""
        job.compiling_since = job.compiling_since or now
        if now - job.compiling_since < COMPILING_S:
            self.waiting.append(job)
        else:
            job.deferred = f"its grammar isn't compiled after {COMPILING_S:g} s"
            self.deferred.append(job)

    def _compile(self) -> None:
        """Compile in this process what was tried in another one. It may take this one down, which counts only for the
        jobs that wait for it: of the others it's noted that they only wait. Raises redis errors."""
        tried = {job.compiling for job in self.waiting if job.compiling and job.compiling.is_tried}
        changed = [job for job in self.waiting if job.waits == (job.compiling in tried)]
        calls = [extend_call(job.execution, RQ_LEASE_S, waits=job.compiling not in tried) for job in changed]
        for job in changed:
            job.waits = True  # also where the reply is lost
        for job, reply in zip(changed, self.pipeline.run([*calls]) if calls else [], strict=True):
            if job.compiling not in tried:
                continue
            if isinstance(reply, Exception):  # as by a Redis without memory: with the note no death would be counted
                tried.discard(job.compiling)
            else:
                job.waits = False
        for compilation in tried:
            compilation.proceed()

    @property
    def _room(self) -> int:
        """How many more jobs may wait."""
        return MOST_MISSING - len(self.missing) - len(self.waiting) - len(self.deferred)

    def _take(self, limit: int, *, idle: bool) -> None:
        if self.leaving.is_set():  # what this worker hands back is another's to take
            return
        if not self._execution_ids:
            if idle and not any_queued(self.pipeline, self.queues):
                return
            self._execution_ids = tuple(uuid4().hex for _ in range(limit))
        take = Take(self.worker, self.queues, self._execution_ids, RQ_LEASE_S, idle, self.kind)
        taken = self.pipeline.ask(take_call(take))
        self._execution_ids = ()
        self.ready += [Job(each.execution, each.data, each.crashed) for each in taken]
