"""Claiming: of each job that was read, a claim that is this worker's; or what its refusal means for the job.

A job that can't be worked on is ended or given back here, alone: it doesn't affect its neighbours.
"""

from __future__ import annotations

import json
import logging
import time
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Final, assert_never

from tokenrelay.shared import effective
from tokenrelay.shared.errors import ProtocolError, RequestError
from tokenrelay.shared.options import WIRE
from tokenrelay.shared.redis.calls import Unusable
from tokenrelay.shared.redis.commands import server_time
from tokenrelay.shared.store import requests
from tokenrelay.shared.store.jobs import Note, Outcome, close_call, drop_call, job_status, requeue_call
from tokenrelay.shared.store.replies import (
    Busy,
    Done,
    Early,
    Expired,
    Granted,
    Lost,
    NotMine,
    Past,
    Poison,
    Unreadable,
    describe,
)
from tokenrelay.shared.store.requests import Claimant, Prompt
from tokenrelay.shared.wire.entries import State, loggable
from tokenrelay.shared.wire.keys import Plane
from tokenrelay.worker.core.attempts import Claimed, Ending
from tokenrelay.worker.core.figures import reason_of
from tokenrelay.worker.intake.job import waited_s
from tokenrelay.worker.intake.resuming import resumed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from tokenrelay.shared.redis.batches import Pipeline
    from tokenrelay.shared.redis.calls import ScriptCall
    from tokenrelay.shared.redis.commands import Batch, Call, Reply
    from tokenrelay.shared.settings import WorkerSettings
    from tokenrelay.shared.store.replies import ClaimReply
    from tokenrelay.worker.core.figures import Figures
    from tokenrelay.worker.intake.job import Job
    from tokenrelay.worker.serving.prompts import PromptReader

    _Refusal = Busy | Done | Past | Poison | NotMine | Unreadable | Lost | Unusable

log = logging.getLogger(__name__)

REFUSED_MS, MOST_REFUSED_MS = 5_000, 60_000
"""How long workers of this kind leave a job to others that they were refused, which take it at once: twice as long each
time it comes back."""
DEFERRED_MS, MOST_DEFERRED_MS = 1_000, 2_000
"""The same, of a job whose grammar couldn't be compiled at once."""
_GONE: Final = "its request is gone from Redis"
_REFUSALS: Final[dict[type, str]] = {
    Busy: "busy",
    Done: "done",
    Past: "past",
    Poison: "poison",
    NotMine: "not_mine",
    Unreadable: "unreadable",
    Lost: "lost",
}
"""What the metrics call why a claim was refused."""


@dataclass(slots=True)
class Claiming:
    """Claims for the worker named `worker`."""

    pipeline: Pipeline
    reader: PromptReader
    settings: WorkerSettings
    worker: str
    figures: Figures
    _uncounted: list[Callable[[], object]] = field(default_factory=list)
    """What this round did, for the figures: counted once it can't be repeated any more."""

    def claim(self, jobs: list[Job]) -> list[Claimed]:
        """The claims that were granted. Raises redis errors: the same jobs may be claimed again then."""
        self._uncounted.clear()
        claimed: list[Claimed] = []
        clean_up: Batch = []
        others: list[str] = []
        jobs = self._servable(jobs, clean_up, others)
        calls = [self._call(job) for job in jobs]
        *replies, time_now = self.pipeline.run([*calls, server_time(Plane.TOKEN)]) if jobs else [None]
        for job, call, reply in zip(jobs, calls, replies, strict=True):
            match _parsed(job, call, reply):
                case Granted() as granted:
                    claimed.append(self._grant(job, granted, time_now))
                case None:
                    clean_up.append(self._end(job, State.FAILED, "the claim's reply can't be read"))
                case refusal:
                    clean_up.append(self._refused(job, refusal))
                    if isinstance(refusal, NotMine):
                        others.append(f"{loggable(job.execution.job_id)}: {loggable(refusal.why)}")
        if others:  # one line: there may be thousands of them
            log.warning("%s requests need another worker, such as %s", len(others), others[0])
        self.settle(clean_up)
        for count in self._uncounted:
            count()
        return claimed

    def _servable(self, jobs: list[Job], clean_up: Batch, others: list[str]) -> list[Job]:
        """The jobs to claim. Those that ask for what this kind of worker can't do are left to others."""
        for job in jobs:
            if job.foreign:
                clean_up.append(self._refused(job, NotMine(job.foreign)))
                others.append(f"{loggable(job.execution.job_id)}: {loggable(job.foreign)}")
        return [job for job in jobs if not job.foreign]

    def _call(self, job: Job) -> ScriptCall[ClaimReply]:
        settings, reader = self.settings, self.reader
        claimant = Claimant(
            worker=self.worker,
            model=reader.served_model,
            fingerprint=reader.fingerprint,
            lease_ms=settings.lease_ms,
            max_crashes=settings.max_crashes,
            suspicion_ms=settings.suspicion_ms,
            wire=WIRE,
        )
        ids, texts = job.encoded
        decided = effective.dump(job.effective) if job.effective else ""
        seed, marks = (job.options["seed"] if job.options else 0) or 0, json.dumps(job.marks) if job.marks else ""
        prompt = Prompt(seed, len(job.prompt_ids), ids, texts, decided, marks)
        return requests.claim(job.execution.job_id, job.execution.execution_id, claimant, prompt)

    def _grant(self, job: Job, granted: Granted, time_now: Reply) -> Claimed:
        """What the loop gets; with its ending, where it can't be generated."""
        claimed = Claimed(job.execution, granted.fence, granted.attempt, job.retention_s, ending=job.refusal)
        try:
            waited = waited_s(job, granted.deadline_us, time_now)
            claimed = replace(claimed, submitted_at=None if waited is None else time.monotonic() - waited)
            emitted = granted.next_index - 1
            count = partial(self.figures.claimed, granted.attempt, len(job.prompt_ids), emitted, waited)
            self._uncounted.append(count)
            if job.options is None or job.refusal is not None:
                return claimed
            return resumed(claimed, granted, self.reader, job.options, job.grammar)
        except RequestError as error:
            return replace(claimed, ending=Ending.failure(error.code, error.message))
        except BaseException:  # the per-request boundary: see Attempt.fail
            context = {"request_id": job.execution.job_id, "attempt": granted.attempt}
            log.exception("request %s can't be resumed: it fails alone", job.execution.job_id, extra=context)
            return replace(claimed, ending=Ending.internal_error())

    def _refused(self, job: Job, reply: _Refusal) -> Call:
        """What a refused claim does to the job. BUSY changes nothing: somebody else is at it. Raises redis errors."""
        execution = job.execution
        if not isinstance(reply, Unusable):
            self._uncounted.append(partial(self.figures.refused_claims.add, _REFUSALS[type(reply)]))
        match reply:
            case Busy():
                return drop_call(execution)
            case NotMine():
                return requeue_call(execution, "back", Note(self.reader.kind, REFUSED_MS, MOST_REFUSED_MS))
            case Past():
                return self._expire(job)
            case Done(state):
                return self._ended(job, state)
            case Unreadable() | Lost() | Unusable():
                return self._fail(job, reply)
            case Poison():
                return self._end(job, State.FAILED, "poison_request: it took its worker down", "poison_request")
            case _:
                assert_never(reply)

    def _fail(self, job: Job, reply: Unreadable | Lost | Unusable) -> Call:
        """End a request whose keys no worker can continue. Where they're gone, only its job is closed."""
        detail = describe(reply)
        log.warning("request %s: %s", loggable(job.execution.job_id), detail)
        self.settle([requests.fail(job.execution.job_id, detail)])
        return self._end(job, State.FAILED, detail)

    def _expire(self, job: Job) -> Call:
        """End the request. Returns the call that closes its job; a handed-over one may have tokens. Raises redis
        errors."""
        call = requests.expire(job.execution.job_id)
        (raw,) = self.pipeline.run([call])
        match reply := call.parse(raw):
            case Expired(state):
                return self._end(job, state, "deadline passed", "deadline")
            case Done(state):
                return self._ended(job, state)
            case Early():  # Redis's clock went back
                return requeue_call(job.execution, "front")
            case Unreadable() | Lost():
                return self._end(job, State.FAILED, _GONE)
            case Unusable():
                return self._fail(job, reply)
            case _:
                assert_never(reply)

    def _ended(self, job: Job, state: State) -> Call:
        """Close the job of a request that somebody else ended. A worker has counted it itself."""
        detail = f"{state} before it was taken"
        match state:
            case State.CANCELLED | State.EXPIRED:
                return self._end(job, state, detail)
            case State.COMPLETED | State.INCOMPLETE | State.FAILED | State.QUEUED | State.IN_PROGRESS:
                return self._close(job, state, detail)
            case _:
                assert_never(state)

    def _end(self, job: Job, state: State, detail: str, reason: str = "") -> Call:
        """Close the job of a request that ended before an attempt of this worker."""
        self._uncounted.append(partial(self.figures.ends.add, str(state), reason or reason_of(state)))
        return self._close(job, state, detail)

    @staticmethod
    def _close(job: Job, state: State, detail: str) -> Call:
        return close_call(job.execution, Outcome(job_status(state), job.retention_s, detail))

    def close_lost(self, jobs: Sequence[Job]) -> None:
        """Close jobs whose request never came. Raises redis errors."""
        if jobs:
            log.warning(
                "%s jobs have no request in Redis, such as %s: they are closed; where streams have their own Redis,"
                " producers and workers need the same TOKENRELAY_STREAMS_URL",
                len(jobs),
                loggable(jobs[0].execution.job_id),
            )
            self.settle([self._close(job, State.FAILED, _GONE) for job in jobs])
            self.figures.ends.add(str(State.FAILED), reason_of(State.FAILED), amount=len(jobs))

    def give_back(self, jobs: Iterable[Job]) -> None:
        """Put jobs that must run alone, and can't now, at the front of their queue. Raises redis errors."""
        self.settle([requeue_call(job.execution, "front", Note()) for job in jobs])

    def defer(self, jobs: Sequence[Job]) -> None:
        """Put jobs back in their queues, which workers of this kind leave there for a moment. Raises redis errors."""
        if jobs:
            which = loggable(jobs[0].execution.job_id)
            log.warning("%s requests are taken again later, such as %s: %s", len(jobs), which, jobs[0].deferred)
            note = Note(self.reader.kind, DEFERRED_MS, MOST_DEFERRED_MS)
            self.settle([requeue_call(job.execution, "back", note) for job in jobs])

    def settle(self, batch: Batch) -> None:
        """Send what becomes of refused jobs. Raises redis errors."""
        for reply in self.pipeline.run(batch) if batch else []:
            if isinstance(reply, Exception):
                log.warning("a refused job couldn't be settled: %s", reply)


def _parsed(job: Job, call: ScriptCall[ClaimReply], reply: Reply) -> ClaimReply | Unusable | None:
    """The reply; None where it can't be read, which fails this job alone. Raises redis errors."""
    try:
        return call.parse(reply)
    except ProtocolError:
        log.exception("the claim of request %s can't be understood", job.execution.job_id)
        return None
