"""Attempts: what this worker holds of the requests that it generates. Knows no Redis.

An `Attempt` belongs to the generation loop's thread, which alone makes, reads and writes it. Others get and give
values: intake gives a `Claimed`, RQ's mirror gets an `Execution`.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from tokenrelay.shared.request_fields import MAX_PROMPT_LOGPROBS_BYTES
from tokenrelay.shared.wire.entries import State
from tokenrelay.worker.engine.contract import EngineRequest
from tokenrelay.worker.sampling.params import SamplingParams

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tokenrelay.shared.options import StoredRequest
    from tokenrelay.shared.store.jobs import Execution
    from tokenrelay.shared.store.requests import WrittenToken
    from tokenrelay.worker.engine.contract import EngineOutput, FinishReason
    from tokenrelay.worker.sampling.row import TokenMask
    from tokenrelay.worker.text import TokenText

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Ending:
    """How a request is to end: what its terminal event will say."""

    state: State
    finish_reason: str
    text: str = ""
    code: str = ""
    message: str = ""

    @classmethod
    def failure(cls, code: str, message: str) -> Ending:
        return cls(State.FAILED, "error", code=code, message=message)

    @classmethod
    def internal_error(cls) -> Ending:
        return cls.failure("internal_error", "the worker couldn't handle the request; see its log")

    @classmethod
    def natural(cls, text: TokenText, finish_reason: FinishReason) -> Ending:
        """The end that the model or the budget came to; flushes `text`."""
        rest = text.flush()
        if finish_reason == "stop" or text.stopped:
            return cls(State.COMPLETED, "stop", rest)
        return cls(State.INCOMPLETE, "length", rest)


TOO_LARGE: Final = Ending.failure(
    "prompt_logprobs_too_large",
    f"the prompt's log-probabilities take more than {MAX_PROMPT_LOGPROBS_BYTES} bytes: give a shorter prompt, or a "
    "smaller prompt_logprobs",
)


@dataclass(frozen=True, slots=True)
class Work:
    """What the engine is to do for a claimed request. `budget`: tokens, over all attempts; `bad_words` as tokens;
    `token_mask`: of its grammar."""

    options: StoredRequest
    prompt_ids: tuple[int, ...]
    budget: int
    bad_words: tuple[tuple[int, ...], ...] = ()
    token_mask: TokenMask | None = None


@dataclass(frozen=True, slots=True)
class Claimed:
    """A claim that was granted, on its way from intake to the loop, which makes an `Attempt` of it."""

    execution: Execution
    fence: str
    number: int
    retention_s: int
    submitted_at: float | None = None
    """When the request was submitted, on this process's monotonic clock; None where its deadline doesn't say."""
    text: TokenText | None = None
    emitted: tuple[WrittenToken, ...] = ()
    """The tokens of earlier attempts, which `text` has replayed."""
    work: Work | None = None
    """None where it has ended already: only `ending` is to be published."""
    ending: Ending | None = None


@dataclass(slots=True)
class Attempt:
    """One claimed request: its tokens since the first one, what Redis has of them, and how it ends.

    All tokens are kept until the end, those of earlier attempts included: Redis may ask for any again (GAP).
    """

    execution: Execution
    fence: str
    number: int
    retention_s: int
    text: TokenText | None = None
    tokens: list[WrittenToken] = field(default_factory=list)
    """Token 1, 2, …"""
    acknowledged: int = 0
    """Tokens that Redis has."""
    ending: Ending | None = None
    prompt_logprobs: bytes | None = None
    """JSON, from the first output of a request that asks for them."""
    scored: bool = False
    """Whether Redis has `prompt_logprobs`."""
    stopped_by_rq: bool = False
    submitted_at: float | None = None
    """When the request was submitted, on this process's monotonic clock; None where its deadline doesn't say."""
    appended_at: float | None = None
    """When Redis last acknowledged tokens of this attempt, on the same clock."""
    renewed_at: float | None = None
    """When the last append that renewed its lease was sent, on the same clock: the lease began no earlier."""
    reopened: bool = False
    """Whether it had ended, and Redis lost that: its end is written again."""

    @classmethod
    def begin(cls, claimed: Claimed) -> Attempt:
        return cls(
            claimed.execution,
            claimed.fence,
            claimed.number,
            claimed.retention_s,
            text=claimed.text,
            tokens=list(claimed.emitted),
            acknowledged=len(claimed.emitted),
            ending=claimed.ending,
            submitted_at=claimed.submitted_at,
        )

    @property
    def request_id(self) -> str:
        return self.execution.job_id

    @property
    def unpublished(self) -> bool:
        return self.ending is not None or len(self.tokens) > self.acknowledged

    @property
    def unscored(self) -> bytes | None:
        """The prompt's log-probabilities that Redis lacks, and needs before a token and the end of an answer."""
        given_up = self.ending is not None and self.ending.finish_reason in ("error", "deadline")
        return None if self.scored or given_up else self.prompt_logprobs

    def receive(self, output: EngineOutput) -> None:
        """Take new tokens; a stop string or token, or the engine's own finish, sets the ending. Whatever is wrong with
        them fails this request alone."""
        if self.ending is not None or self.text is None:
            return
        try:
            self._receive(self.text, output)
        except BaseException:  # noqa: BLE001  the per-request boundary
            self.fail()

    def _receive(self, text: TokenText, output: EngineOutput) -> None:
        if output.prompt_logprobs is not None:
            self.prompt_logprobs = text.prompt_logprobs(output.prompt_logprobs)
            if len(self.prompt_logprobs) > MAX_PROMPT_LOGPROBS_BYTES:
                self.ending = TOO_LARGE
                return
        for place, token_id in enumerate(output.token_ids):
            release = text.push(token_id)
            written = (release.text, token_id)
            self.tokens.append((*written, text.logprobs(output.logprobs[place])) if output.logprobs else written)
            if release.stopped:
                self.ending = Ending(State.COMPLETED, "stop")
                return
        if output.error is not None:
            self.ending = Ending.failure(output.error.code, output.error.message)
        elif output.finish_reason is not None:
            self.ending = Ending.natural(text, output.finish_reason)

    def fail(self) -> None:
        """End as `internal_error`, for the exception that is being handled. This is the per-request boundary: whatever
        one request's handling raises fails that request alone.

        Callers catch BaseException: a tokenizer written in Rust panics with one that is no Exception.
        """
        self.ending = Ending.internal_error()
        context = {"request_id": self.request_id, "attempt": self.number}
        log.exception("request %s can't be handled: it fails alone", self.request_id, extra=context)

    def past_deadline(self) -> None:
        """The deadline cut the request off: it ends with what Redis has, and what that holds back."""
        if self.ending is not None and self.ending.finish_reason == "deadline":
            return
        late = len(self.tokens) > self.acknowledged
        try:
            rest = self.text.flush() if self.text and not late else ""
        except BaseException:  # noqa: BLE001  the per-request boundary
            self.fail()
            return
        del self.tokens[self.acknowledged :]
        self.ending = Ending(State.INCOMPLETE, "deadline", rest)


def engine_request(attempt: Attempt, work: Work) -> EngineRequest:
    """What the engine needs of an attempt. The fence is the engine's ID: never used twice."""
    return EngineRequest(
        engine_id=attempt.fence,
        prompt_ids=work.prompt_ids,
        emitted_ids=tuple(token[1] for token in attempt.tokens),
        max_new_tokens=work.budget,
        sampling=SamplingParams.of(work.options, work.bad_words),
        ignore_eos=work.options["ignore_eos"],
        kept_end_ids=attempt.text.last_tokens if attempt.text else frozenset(),
        top_logprobs=work.options["top_logprobs"] if work.options["logprobs"] else None,
        # Redis has them before the first token: what an earlier attempt has stored isn't computed again.
        prompt_logprobs=None if attempt.tokens else work.options["prompt_logprobs"],
        token_mask=work.token_mask,
        shares_prompt=work.options.get("choices", 1) > 1,
    )


def of_job(attempts: Iterable[Attempt], job_id: str, execution_id: str = "") -> Attempt | None:
    """The attempt at a job, or at one execution of it."""
    for attempt in attempts:
        execution = attempt.execution
        if execution.job_id == job_id and execution_id in ("", execution.execution_id):
            return attempt
    return None
