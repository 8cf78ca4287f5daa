"""Intake: queued jobs become claims. Take, read, encode, claim: one round trip each, for all that fit."""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING

from tokenrelay.shared.store.jobs import ALONE_FROM_CRASHES
from tokenrelay.worker.core.status import Encoding
from tokenrelay.worker.intake.claiming import Claiming
from tokenrelay.worker.intake.reading import Reading
from tokenrelay.worker.intake.taking import Taking

if TYPE_CHECKING:
    from collections.abc import Callable

    from tokenrelay.shared.redis.batches import Pipeline
    from tokenrelay.shared.settings import WorkerSettings
    from tokenrelay.shared.store.jobs import Execution
    from tokenrelay.worker.core.attempts import Claimed
    from tokenrelay.worker.core.figures import Figures
    from tokenrelay.worker.intake.job import Job
    from tokenrelay.worker.serving.prompts import PromptReader


class Intake:
    """Takes jobs from `queues`, first queue first, and claims their requests for the worker named `worker`."""

    def __init__(
        self,
        pipeline: Pipeline,
        reader: PromptReader,
        settings: WorkerSettings,
        worker: str,
        queues: tuple[str, ...],
        figures: Figures,
    ) -> None:
        self.figures = figures
        self.encoding = Encoding()
        self.leaving = threading.Event()
        """Whether nothing more is to be taken. Any thread may set it."""
        reading = Reading(pipeline, reader, settings.max_crashes, self.encoding)
        self._taking = Taking(pipeline, reading, worker, queues, reader.kind, self.leaving)
        self._claiming = Claiming(pipeline, reader, settings, worker, figures)
        self._alone = False
        """Whether what was claimed last is to run alone."""
        self.exhausted = False
        """Whether the last look of an idle worker found nothing to take."""

    @property
    def unclaimed(self) -> bool:
        """Whether jobs were taken, or may have been, that aren't claimed yet."""
        return self._taking.unclaimed

    @property
    def taken(self) -> list[Execution]:
        """The jobs that were taken and aren't claimed yet."""
        return self._taking.taken

    def when_compiled(self, notify: Callable[[], object]) -> None:
        """Call `notify`, from any thread, when a part of a compilation ends that a job has begun to wait for since the
        last call."""
        for job in self._taking.waiting:
            stage = job.compiling and job.compiling.stage
            if stage and job.notifies is not stage:
                job.notifies = stage
                stage.add_done_callback(lambda _: notify())

    def claim(self, limit: int, *, idle: bool) -> list[Claimed]:
        """Up to `limit` requests that are now this worker's. Raises redis errors; nothing is lost by them.

        A request that took its worker down twice runs alone: it is claimed only where the worker is `idle`, with no
        other, and nothing else until it is over. So a poison request takes no neighbours along. A worker that meets it
        and isn't idle leaves it in the queue, and claims the others.
        """
        taking = self._taking
        if self._alone and not idle and not taking.ready:
            return []
        self._alone = self.exhausted = False
        taking.fill(limit, idle=idle)
        self._claiming.close_lost(taking.lost)
        taking.lost.clear()
        self._claiming.defer(taking.deferred)
        taking.deferred.clear()
        if not taking.ready:
            self.exhausted = idle and not taking.missing and not taking.waiting
            return []
        self._set_apart(list(taking.ready), idle=idle)
        claimed = self._claiming.claim(list(taking.ready))
        taking.ready.clear()
        return claimed

    def _set_apart(self, jobs: list[Job], *, idle: bool) -> None:
        """Give those back that must run alone and can't now."""
        lonely = [job for job in jobs if job.crashes >= ALONE_FROM_CRASHES]
        if not lonely or (idle and len(jobs) == 1):
            self._alone = bool(lonely)
            return
        self._claiming.give_back(lonely)
        # At once: a claim that fails below is tried again with what is left, and these are in other hands by then.
        self._taking.ready = deque(job for job in jobs if job.crashes < ALONE_FROM_CRASHES)
