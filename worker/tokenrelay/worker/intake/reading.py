"""Reading: the requests behind taken jobs, and their prompts as token IDs.

Whatever is wrong with a request, it fails alone, and says why.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, cast

from tokenrelay.shared import effective
from tokenrelay.shared.effective import obeying
from tokenrelay.shared.errors import EngineError, RequestError
from tokenrelay.shared.options import WIRE, load
from tokenrelay.shared.redis.calls import is_unusable
from tokenrelay.shared.settings import MAX_RETENTION_S
from tokenrelay.shared.store.jobs import is_our_call
from tokenrelay.shared.store.record import Field, RequestRecord, look
from tokenrelay.shared.wire import keys
from tokenrelay.shared.wire.entries import whole
from tokenrelay.worker.core.attempts import Ending
from tokenrelay.worker.intake.job import encoded
from tokenrelay.worker.sampling.draw import DRAW_VERSION
from tokenrelay.worker.sampling.grammar.compiler import outcome
from tokenrelay.worker.sampling.grammar.library import library

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tokenrelay.shared.options import Submission
    from tokenrelay.shared.redis.batches import Pipeline
    from tokenrelay.worker.core.status import Encoding
    from tokenrelay.worker.intake.job import Job
    from tokenrelay.worker.serving.prompts import PromptReader

log = logging.getLogger(__name__)

_FIELDS: Final = (
    Field.BODY,
    Field.PROMPT_IDS,
    Field.RETENTION_MS,
    Field.CRASHES,
    Field.WIRE,
    Field.EFFECTIVE,
)


@dataclass(slots=True)
class Reading:
    """Reads requests with the model's tokenizer and chat template."""

    pipeline: Pipeline
    reader: PromptReader
    max_crashes: int
    encoding: Encoding

    def read(self, jobs: Sequence[Job]) -> None:
        """Fill the jobs in: the first claim's prompt IDs, where there was one. Raises redis errors."""
        replies = self.pipeline.run([look(job.execution.job_id, _FIELDS) for job in jobs]) if jobs else []
        for job, reply in zip(jobs, replies, strict=True):
            if is_unusable(reply):
                job.refusal = Ending.failure("invalid_request", "its key doesn't hold a request")
                continue
            if isinstance(reply, Exception):
                raise reply
            self._prepare(job, RequestRecord(_FIELDS, reply))

    def _prepare(self, job: Job, record: RequestRecord) -> None:
        if not record.has(Field.BODY):
            job.missing_since = job.missing_since or time.monotonic()
            return
        job.missing_since = None
        try:
            job.retention_s = min(record.retention_s(1), MAX_RETENTION_S)
            job.crashes = record.crashes or (0 if record.prompt_ids else job.crashed)
            job.wire, job.decided = whole(record.wire) or 1, bool(record.effective)
            if not is_our_call(job.data, job.execution.job_id):
                raise RequestError(f"its job doesn't call {keys.JOB_FUNCTION}", code="invalid_job")
            wire = whole(record.wire) or WIRE
            job.options = load(record.body, wire)
            job.prompt_ids = (
                self.reader.stored_ids(record.prompt_ids) if record.prompt_ids else self._encode(job, job.options)
            )
            job.encoded = encoded(job.prompt_ids, self.reader.token_texts(job.prompt_ids, job.options))
            self._decide(job, job.options, record.effective, wire)
        except RequestError as error:
            self._refuse(job, error)
        except EngineError as error:
            job.deferred = str(error)
        except BaseException:  # the per-request boundary: see Attempt.fail
            log.exception("request %s can't be read: it fails alone", job.execution.job_id)
            job.refusal = Ending.internal_error()

    def is_compiled(self, job: Job) -> bool:
        """Whether the job needn't wait for its grammar any more; fills in what became of it."""
        if job.compiling is None:
            return True
        if not job.compiling.done():
            return False
        try:
            job.grammar, job.compiling = outcome(job.compiling), None
        except RequestError as error:
            self._refuse(job, error)
        except EngineError as error:
            job.deferred = str(error)
        except BaseException:  # the per-request boundary: see Attempt.fail
            log.exception("the grammar of request %s can't be compiled: it fails alone", job.execution.job_id)
            job.refusal = Ending.internal_error()
        return True

    def _decide(self, job: Job, options: Submission, stored: str, wire: int) -> None:
        """Work out what a first claim would decide, or what it has decided. Raises RequestError, ProtocolError."""
        length = len(job.prompt_ids)
        if wire == 1:
            self.reader.budget(length, 0, options)
            return
        decided = effective.parse(stored) if stored else None
        chosen = obeying(options, decided) if decided else self.reader.chosen(options)
        budget = self.reader.budget(length, 0, chosen)
        job.compiling = self.reader.grammar(chosen)
        given = cast("Mapping[str, Any]", chosen)
        used = library() if job.compiling else None
        job.effective = effective.decide(chosen, budget, DRAW_VERSION, used, self.reader.tool_parser_of(given))
        job.marks = self.reader.marks(given)

    def _refuse(self, job: Job, error: RequestError) -> None:
        """What only this worker can't do of a wire version 2 request, another one may."""
        job.refusal = Ending.failure(error.code, error.message)
        if job.wire > 1:
            if error.code == "unsupported_option":
                job.foreign = f"effective {error.field}"
            elif error.code == "invalid_grammar" and job.decided:  # it took too long here, or its library differs
                job.foreign = "effective grammar"
            elif error.code == "prompt_too_long" and job.decided:
                job.foreign = "effective budget"

    def _encode(self, job: Job, options: Submission) -> tuple[int, ...]:
        """The prompt's token IDs. Raises RequestError, also for a prompt that took too many workers down."""
        if job.crashed >= self.max_crashes:
            why = f"the worker that was to read this request died {job.crashed} times in a row"
            raise RequestError(why, code="poison_request")
        self.encoding.running, self.encoding.begun = True, self.encoding.begun + 1
        try:
            return self.reader.encode(options)
        finally:
            self.encoding.running = False
