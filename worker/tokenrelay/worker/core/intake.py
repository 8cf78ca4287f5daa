"""Intake: queued jobs become claimed attempts. Take, read, encode, claim: one round trip each, for all that fit.

Owns the claim. A job that can't be worked on is ended or given back here, alone: its neighbours go on.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Final, assert_never
from uuid import uuid4

from tokenrelay.shared.errors import ProtocolError, RequestError
from tokenrelay.shared.options import load
from tokenrelay.shared.redis.calls import Unusable, is_unusable
from tokenrelay.shared.redis.commands import server_time
from tokenrelay.shared.settings import MAX_RETENTION_S
from tokenrelay.shared.store import requests
from tokenrelay.shared.store.jobs import (
    STATUS_OF,
    Note,
    Outcome,
    Take,
    any_queued,
    close_call,
    drop_call,
    is_our_call,
    requeue_call,
    take_call,
)
from tokenrelay.shared.store.record import Field, RequestRecord, look
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
)
from tokenrelay.shared.store.requests import Claimant, Prompt
from tokenrelay.shared.wire import keys
from tokenrelay.shared.wire.entries import State, loggable
from tokenrelay.worker.core.attempts import Attempt, Ending
from tokenrelay.worker.core.figures import reason_of
from tokenrelay.worker.core.recovery import ALONE_FROM_CRASHES
from tokenrelay.worker.core.taken import Claimed, Job, encoded, waited_s
from tokenrelay.worker.core.unreadable import fail_call, told

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tokenrelay.shared.options import Submission
    from tokenrelay.shared.redis.batches import Pipeline
    from tokenrelay.shared.redis.calls import ScriptCall
    from tokenrelay.shared.redis.commands import Batch, Call, Reply
    from tokenrelay.shared.settings import WorkerSettings
    from tokenrelay.shared.store.jobs import Execution
    from tokenrelay.shared.store.replies import ClaimReply
    from tokenrelay.worker.core.figures import Figures
    from tokenrelay.worker.serving.prompts import PromptReader

    _Refusal = Busy | Done | Past | Poison | NotMine | Unreadable | Lost | Unusable

log = logging.getLogger(__name__)

_FIELDS: Final = (Field.BODY, Field.PROMPT_IDS, Field.RETENTION_MS, Field.CRASHES)
RQ_LEASE_S = 60
"""How long RQ lets an execution go without a heartbeat. Ours is the lease in the request's hash."""
MISSING_S = 1.0
"""How long a job's request is waited for that isn't there."""
MOST_MISSING = 256
"""Jobs without a request that wait at a time. They take up no slots; each that is closed makes room for another."""
MISSING_LOOK_S = 0.1
"""How often they are looked at, at most."""
REFUSED_MS, MOST_REFUSED_MS = 5_000, 60_000
"""How long workers of this kind leave a job to others that they were refused, which take it at once: twice as long each
time it comes back."""
_GONE = "its request is gone from Redis"
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
class Intake:
    """Takes jobs from `queues`, first queue first, for the worker named `worker`."""

    pipeline: Pipeline
    reader: PromptReader
    settings: WorkerSettings
    worker: str
    queues: tuple[str, ...]
    figures: Figures
    _unread: deque[Job] = field(default_factory=deque)
    """Taken, not yet claimed: kept over an error, so that a taken job is never forgotten."""
    _missing: list[Job] = field(default_factory=list)
    """Taken, their requests not there yet; or there, and no slot is free. Looked at again at `_look_at`."""
    _look_at: float = 0.0
    _execution_ids: tuple[str, ...] = ()
    """Of a take whose reply didn't come: repeated with the same IDs, it gives the same jobs."""
    _uncounted: list[Callable[[], object]] = field(default_factory=list)
    """What this round did, for the figures: told once it can't be repeated any more."""
    _alone: bool = False
    """Whether what was claimed last is to run alone."""

    exhausted: bool = False
    """Whether the last look of an idle worker found nothing to take."""
    reading: bool = False
    """Whether a prompt is being encoded. `reads` counts them: one that is never done stands still."""
    reads: int = 0

    @property
    def unclaimed(self) -> bool:
        """Whether jobs were taken, or may have been, that aren't attempts yet."""
        return bool(self._unread or self._missing or self._execution_ids)

    @property
    def taken(self) -> list[Execution]:
        """The jobs that were taken and aren't attempts yet."""
        return [job.execution for job in (*self._unread, *self._missing)]

    def claim(self, limit: int, *, idle: bool) -> list[Claimed]:
        """Up to `limit` attempts that are now this worker's. Raises redis errors; nothing is lost by them.

        A request that took its worker down twice runs alone: it is claimed only where the worker is `idle`, with no
        other, and nothing else until it is over. So a poison request takes no neighbours along. A worker that meets it
        and isn't idle leaves it in the queue, and goes on with the others.
        """
        if self._alone and not idle and not self._unread:
            return []
        self._alone = self.exhausted = False
        self._fill(limit, idle=idle)
        if not self._unread:
            self.exhausted = idle and not self._missing
            return []
        claimed = self._claim(self._set_apart(list(self._unread), idle=idle))
        self._unread.clear()
        return claimed

    def _fill(self, limit: int, *, idle: bool) -> None:
        """Have up to `limit` jobs in `_unread` whose requests are there. Jobs without one wait beside them."""
        if self._unread:  # a claim of them failed
            self._sort(list(self._unread), limit)
            return
        if time.monotonic() >= self._look_at:
            self._unread, self._missing = deque(self._missing), []
            self._look_at = time.monotonic() + MISSING_LOOK_S
            self._sort(list(self._unread), limit)
        while (room := min(limit - len(self._unread), MOST_MISSING - len(self._missing))) > 0:
            kept = len(self._unread)
            self._take(room, idle=idle and not kept)
            taken = list(self._unread)[kept:]
            self._sort(taken, limit)
            if len(taken) < room:
                return

    def _sort(self, jobs: list[Job], limit: int) -> None:
        """Read jobs of `_unread`, and set those apart whose request isn't there.

        These are looked at again, and closed where it doesn't come: a producer of an earlier release may enqueue a
        moment before it creates, see `submission.written`.
        """
        self._read(jobs)
        lost_before = time.monotonic() - MISSING_S
        here = [job for job in self._unread if job.gone_since is None]
        gone = [job for job in self._unread if job.gone_since is not None]
        lost = [job for job in gone if (job.gone_since or 0) <= lost_before]
        if lost:
            self._settle([self._close(job, State.FAILED, _GONE) for job in lost])
            self.figures.ends.add(str(State.FAILED), reason_of(State.FAILED), amount=len(lost))
        self._missing += [*(job for job in gone if (job.gone_since or 0) > lost_before), *here[limit:]]
        self._unread = deque(here[:limit])

    def _set_apart(self, jobs: list[Job], *, idle: bool) -> list[Job]:
        """The jobs to claim now, without those that must run alone and can't yet: they go back to the front."""
        lonely = [job for job in jobs if job.crashes >= ALONE_FROM_CRASHES]
        if not lonely or (idle and len(jobs) == 1):
            self._alone = bool(lonely)
            return jobs
        self._settle([requeue_call(job.execution, "front", Note()) for job in lonely])
        # At once: a claim that fails below is tried again with what is left, and these are in other hands by then.
        self._unread = deque(job for job in jobs if job not in lonely)
        return list(self._unread)

    def _take(self, limit: int, *, idle: bool) -> None:
        if not self._execution_ids:
            if idle and not any_queued(self.pipeline, self.queues):
                return
            self._execution_ids = tuple(uuid4().hex for _ in range(limit))
        take = Take(self.worker, self.queues, self._execution_ids, RQ_LEASE_S, idle, self.reader.kind)
        taken = self.pipeline.ask(take_call(take))
        self._execution_ids = ()
        self._unread += [Job(each.execution, each.data, each.crashed) for each in taken]

    def _read(self, jobs: list[Job]) -> None:
        """The requests behind the jobs; the first claim's prompt IDs, where there was one."""
        replies = self.pipeline.run([look(job.execution.job_id, _FIELDS) for job in jobs])
        for job, reply in zip(jobs, replies, strict=True):
            if is_unusable(reply):
                job.refusal = Ending.failure("invalid_request", "its key doesn't hold a request")
                continue
            if isinstance(reply, Exception):
                raise reply
            self._prepare(job, RequestRecord(_FIELDS, reply))

    def _prepare(self, job: Job, record: RequestRecord) -> None:
        """Read a request. Whatever is wrong with it, it fails alone, and says why."""
        if not record.has(Field.BODY):
            job.gone_since = job.gone_since or time.monotonic()
            return
        job.gone_since = None
        try:
            job.retention_s = min(record.retention_s(1), MAX_RETENTION_S)
            job.crashes = record.crashes or (0 if record.prompt_ids else job.crashed)
            if not is_our_call(job.data, job.execution.job_id):
                raise RequestError(f"its job doesn't call {keys.JOB_FUNCTION}", code="invalid_job")
            job.options = load(record.body)
            job.prompt_ids = (
                self.reader.known(record.prompt_ids) if record.prompt_ids else self._encode(job, job.options)
            )
            job.encoded = encoded(job.prompt_ids, self.reader.texts(job.prompt_ids))
            self.reader.budget(len(job.prompt_ids), 0, job.options)
        except RequestError as error:
            job.refusal = Ending.failure(error.code, error.message)
        except BaseException:  # the per-request boundary: see Attempt.fail
            log.exception("request %s can't be read: it fails alone", job.execution.job_id)
            job.refusal = Ending.internal_error()

    def _encode(self, job: Job, options: Submission) -> tuple[int, ...]:
        """The prompt's token IDs. Raises RequestError, also for a prompt that took too many workers down."""
        if job.crashed >= self.settings.max_crashes:
            told = f"the worker that was to read this request died {job.crashed} times in a row"
            raise RequestError(told, code="poison_request")
        self.reading, self.reads = True, self.reads + 1
        try:
            return self.reader.encode(options)
        finally:
            self.reading = False

    def _claim(self, jobs: list[Job]) -> list[Claimed]:
        self._uncounted.clear()
        claimed: list[Claimed] = []
        clean_up: Batch = []
        others: list[str] = []
        calls = [self._claim_call(job) for job in jobs]
        *replies, time_now = self.pipeline.run([*calls, server_time(keys.Plane.TOKEN)]) if jobs else [None]
        for job, call, reply in zip(jobs, calls, replies, strict=True):
            match self._understood(job, call, reply):
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
        if clean_up:
            self._settle(clean_up)
        for count in self._uncounted:
            count()
        return claimed

    def _claim_call(self, job: Job) -> ScriptCall[ClaimReply]:
        settings, reader = self.settings, self.reader
        claimant = Claimant(
            worker=self.worker,
            model=reader.served_model,
            fingerprint=reader.fingerprint,
            lease_ms=settings.lease_ms,
            max_crashes=settings.max_crashes,
            suspicion_ms=settings.suspicion_ms,
        )
        prompt = Prompt((job.options["seed"] if job.options else 0) or 0, len(job.prompt_ids), *job.encoded)
        return requests.claim(job.execution.job_id, job.execution.execution_id, claimant, prompt)

    @staticmethod
    def _understood(job: Job, call: ScriptCall[ClaimReply], reply: Reply) -> ClaimReply | Unusable | None:
        """The reply; None where it can't be read, which fails this job alone. Raises redis errors."""
        try:
            return call.parse(reply)
        except ProtocolError:
            log.exception("the claim of request %s can't be understood", job.execution.job_id)
            return None

    def _grant(self, job: Job, granted: Granted, time_now: Reply) -> Claimed:
        """The attempt behind a claim; with its ending, where it can't be generated."""
        attempt = Attempt(job.execution, granted.fence, granted.attempt, job.retention_s, ending=job.refusal)
        try:
            return self._granted(job, attempt, granted, time_now)
        except BaseException:  # noqa: BLE001  the per-request boundary
            attempt.fail()
            return Claimed(attempt, None, (), 0)

    def _granted(self, job: Job, attempt: Attempt, granted: Granted, time_now: Reply) -> Claimed:
        waited = waited_s(job, granted.deadline_us, time_now)
        attempt.submitted_at = None if waited is None else time.monotonic() - waited
        count = partial(self.figures.claimed, attempt, len(job.prompt_ids), granted.next_index - 1, waited)
        self._uncounted.append(count)
        if job.options is None or job.refusal is not None:
            return Claimed(attempt, None, (), 0)
        try:
            stored, pairs = self.reader.known(granted.prompt_ids), self._emitted(granted.emitted)
            budget = self.reader.budget(len(stored), len(pairs), job.options)
            attempt.text = self.reader.text(tuple(job.options["stop"]))
            attempt.resume(pairs, budget)
        except RequestError as error:
            attempt.ending = Ending.failure(error.code, error.message)
            return Claimed(attempt, None, (), 0)
        return Claimed(attempt, None if attempt.ending else job.options, stored, budget)

    def _emitted(self, emitted: Sequence[bytes]) -> list[tuple[str, int]]:
        """What earlier attempts emitted, as (text, token ID). Raises RequestError `continuation_mismatch`."""
        try:
            pairs = [(piece.decode(), int(token)) for token, piece in zip(emitted[::2], emitted[1::2], strict=True)]
        except ValueError as error:
            raise RequestError(f"the stream can't be read: {error}", code="continuation_mismatch") from error
        if not self.reader.in_vocabulary([token for _, token in pairs]):
            raise RequestError("the stream holds tokens that aren't this model's", code="continuation_mismatch")
        return pairs

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
        """End a request whose keys nobody can go on with. Where they're gone, there's only RQ to tell."""
        detail = told(reply)
        log.warning("request %s: %s", loggable(job.execution.job_id), detail)
        self._settle([fail_call(job.execution.job_id, detail)])
        return self._end(job, State.FAILED, detail)

    def _expire(self, job: Job) -> Call:
        """End the request; the call that tells RQ how: a handed-over one may have tokens. Raises redis errors."""
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
        close = self._end if state in (State.CANCELLED, State.EXPIRED) else self._close
        return close(job, state, f"{state} before it was taken")

    def _end(self, job: Job, state: State, detail: str, reason: str = "") -> Call:
        """Close the job of a request that ended before an attempt of this worker."""
        self._uncounted.append(partial(self.figures.ends.add, str(state), reason or reason_of(state)))
        return self._close(job, state, detail)

    @staticmethod
    def _close(job: Job, state: State, detail: str) -> Call:
        return close_call(job.execution, Outcome(STATUS_OF[state], job.retention_s, detail))

    def _settle(self, batch: Batch) -> None:
        for reply in self.pipeline.run(batch):
            if isinstance(reply, Exception):
                log.warning("a refused job couldn't be settled: %s", reply)
