"""Attempts: what this worker holds of the requests that it generates. Knows no Redis and no engine."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tokenrelay.shared.wire.entries import State
from tokenrelay.worker.engine.contract import EngineRequest
from tokenrelay.worker.sampling.params import SamplingParams

if TYPE_CHECKING:
    from collections.abc import Callable

    from tokenrelay.shared.options import Submission
    from tokenrelay.shared.store.jobs import Execution
    from tokenrelay.worker.engine.contract import EngineOutput
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
    tokens: list[tuple[str, int]] = field(default_factory=list)
    """(text, token ID) of token 1, 2, …"""
    acknowledged: int = 0
    """Tokens that Redis has."""
    ending: Ending | None = None
    stopped_by_rq: bool = False
    overdue: bool = False
    """Whether the heartbeat found its deadline past. The loop, which owns text and tokens, ends it."""
    submitted_at: float | None = None
    """When the request was submitted, on this process's monotonic clock; None where its deadline doesn't tell."""
    appended_at: float | None = None
    """When Redis last acknowledged tokens of this attempt, on the same clock."""
    renewed_at: float | None = None
    """When the last append that renewed its lease was sent, on the same clock: the lease began no earlier."""

    reopened: bool = False
    """Whether it had ended, and Redis lost that: its end is written again."""

    @property
    def request_id(self) -> str:
        return self.execution.job_id

    @property
    def unpublished(self) -> bool:
        return self.ending is not None or len(self.tokens) > self.acknowledged

    def receive(self, output: EngineOutput) -> None:
        """Take new tokens; a stop string or the engine's own finish sets the ending."""
        if self.ending is not None or self.text is None:
            return
        for token_id in output.token_ids:
            release = self.text.push(token_id)
            self.tokens.append((release.text, token_id))
            if release.stopped:
                self.ending = Ending(State.COMPLETED, "stop")
                return
        if output.error is not None:
            self.ending = Ending.failure(output.error.code, output.error.message)
        elif output.finish_reason is not None:
            self._finish(output.finish_reason)

    def _finish(self, finish_reason: str) -> None:
        assert self.text is not None
        rest = self.text.flush()
        if finish_reason == "stop" or self.text.stopped:
            self.ending = Ending(State.COMPLETED, "stop", rest)
        else:
            self.ending = Ending(State.INCOMPLETE, "length", rest)

    def resume(self, emitted: list[tuple[str, int]], budget: int) -> None:
        """Stand where the earlier attempts stopped. Sets the ending where they had already come to it."""
        if self.text is None or not emitted:
            return
        releases = self.text.replay(token_id for _, token_id in emitted)
        self.tokens, self.acknowledged = list(emitted), len(emitted)
        if [release.text for release in releases] != [text for text, _ in emitted]:
            self.ending = Ending.failure("continuation_mismatch", "the emitted tokens' text can't be rebuilt")
        elif releases[-1].stopped:
            self.ending = Ending(State.COMPLETED, "stop")
        elif len(emitted) >= budget:
            self._finish("length")

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
        late = len(self.tokens) > self.acknowledged
        try:
            rest = self.text.flush() if self.text and not late else ""
        except BaseException:  # noqa: BLE001  the per-request boundary
            self.fail()
            return
        del self.tokens[self.acknowledged :]
        self.ending = Ending(State.INCOMPLETE, "deadline", rest)


def engine_request(attempt: Attempt, options: Submission, prompt_ids: tuple[int, ...], budget: int) -> EngineRequest:
    """What the engine needs of an attempt. The fence is the engine's ID: never used twice."""
    seed = options["seed"]
    assert seed is not None, "submit resolves the seed"
    return EngineRequest(
        engine_id=attempt.fence,
        prompt_ids=prompt_ids,
        emitted_ids=tuple(token_id for _, token_id in attempt.tokens),
        max_new_tokens=budget,
        sampling=SamplingParams(options["temperature"], options["top_k"], options["top_p"], seed),
        ignore_eos=options["ignore_eos"],
    )


class InFlight:
    """The attempts that this worker holds, by fence. Safe to share between intake, publisher and heartbeat."""

    def __init__(self, slots: int, on_free: Callable[[], object]) -> None:
        self.slots = slots
        self._on_free = on_free
        self._lock = threading.Lock()
        self._attempts: dict[str, Attempt] = {}

    @property
    def free(self) -> int:
        return self.slots - len(self._attempts)

    def __len__(self) -> int:
        return len(self._attempts)

    def add(self, attempt: Attempt) -> None:
        with self._lock:
            self._attempts[attempt.fence] = attempt

    def get(self, fence: str) -> Attempt | None:
        return self._attempts.get(fence)

    def drop(self, attempt: Attempt) -> bool:
        """Forget the attempt; False where somebody else did already."""
        with self._lock:
            dropped = self._attempts.pop(attempt.fence, None) is not None
        if dropped:
            self._on_free()
        return dropped

    def all(self) -> list[Attempt]:
        with self._lock:
            return list(self._attempts.values())

    def of_job(self, job_id: str, execution_id: str = "") -> Attempt | None:
        """The attempt at a job, or at one execution of it."""
        for attempt in self.all():
            execution = attempt.execution
            if execution.job_id == job_id and execution_id in ("", execution.execution_id):
                return attempt
        return None
