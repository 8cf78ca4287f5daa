"""What a worker's threads count while they work: plain numbers, read by whoever scrapes. Knows no HTTP and no Redis.

A plain number has one writer: the generation loop for tokens and steps, intake for claims. Any thread adds to a tally.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, assert_never

from tokenrelay.shared.metrics.measures import (
    BATCH_REQUESTS,
    FIRST_TOKEN_S,
    INTER_TOKEN_S,
    LAG_S,
    QUEUE_WAIT_S,
    REQUEST_S,
    Durations,
    Histogram,
    Tally,
)
from tokenrelay.shared.wire.entries import TERMINAL, State

if TYPE_CHECKING:
    from tokenrelay.worker.core.attempts import Attempt

_USUAL_ENDS: Final = (
    ("completed", "stop"),
    ("incomplete", "length"),
    ("incomplete", "deadline"),
    ("cancelled", "cancelled"),
    ("expired", "deadline"),
)
FAILURES: Final = (
    "continuation_mismatch", "control_token", "grammar_dead_end", "internal_error", "invalid_grammar", "invalid_job",
    "invalid_logits", "invalid_request", "lost", "no_token_left", "poison_request",
    "prompt_logprobs_too_large", "prompt_too_long", "unsupported_option",
)  # fmt: skip
"""Every code with which a worker fails a request: alerts are to see the first one too."""
_REFUSALS: Final = ("busy", "not_mine", "past", "done", "poison", "lost")
_REDIS_USES: Final = ("publish", "intake", "heartbeat", "registration", "maintenance", "listen", "release")


class Figures:
    """One worker's."""

    def __init__(self) -> None:
        # Written by the loop's thread.
        self.generated_tokens = 0
        self.appends = 0
        self.coalesced_tokens = 0
        self.inter_token_s = Histogram(INTER_TOKEN_S)
        self.first_token_s = Histogram(FIRST_TOKEN_S)
        self.publish_lag_s = Histogram(LAG_S)
        self.batch_requests = Histogram(BATCH_REQUESTS)
        # Written by intake's thread.
        self.queue_wait_s = Histogram(QUEUE_WAIT_S)
        self.prompt_tokens = 0
        self.recomputed_tokens = 0
        self.attempts = 0
        self.takeovers = 0
        # From any thread.
        self.ends = Tally(*_USUAL_ENDS, *(("failed", code) for code in FAILURES))
        self.request_s = Durations(REQUEST_S, *TERMINAL)
        self.refused_claims = Tally(*((reason,) for reason in _REFUSALS))
        self.fenced_writes = Tally(())
        self.handed_back = Tally(())
        self.recovered = Tally(())
        self.redis_errors = Tally(*((use,) for use in _REDIS_USES))

    def appended(self, attempt: Attempt, tokens: int, now: float) -> None:
        """Redis acknowledged `tokens` more of the attempt, all in one call; before `attempt.acknowledged` says so."""
        if tokens < 1:
            return
        self.appends += 1
        self.generated_tokens += tokens
        self.coalesced_tokens += tokens - 1
        before, attempt.appended_at = attempt.appended_at, now
        if before is not None:
            self.inter_token_s.observe((now - before) / tokens, tokens)
        elif not attempt.acknowledged and attempt.submitted_at is not None:
            self.first_token_s.observe(now - attempt.submitted_at)

    def claimed(self, attempt: int, prompt_tokens: int, emitted_tokens: int, waited_s: float | None) -> None:
        """A request's n-th claim was granted; `waited_s` since it was submitted, where that is known."""
        self.attempts += 1
        if attempt > 1:
            self.takeovers += 1
            self.recomputed_tokens += prompt_tokens + emitted_tokens
            return
        self.prompt_tokens += prompt_tokens
        if waited_s is not None:
            self.queue_wait_s.observe(waited_s)

    def ended(self, attempt: Attempt, state: State, now: float) -> None:
        """A request that this worker held is over, by its doing or somebody else's."""
        ending = attempt.ending
        if ending is not None and ending.state is state:
            reason = ending.code or ending.finish_reason
        else:
            reason = reason_of(state)
        self.ends.add(str(state), reason)
        if attempt.submitted_at is not None:
            self.request_s.observe(str(state), now - attempt.submitted_at)


def reason_of(state: State) -> str:
    """Why a request is in this state, where somebody else ended it."""
    match state:
        case State.CANCELLED:
            return "cancelled"
        case State.EXPIRED:
            return "deadline"
        case State.FAILED:
            return "lost"
        case State.COMPLETED | State.INCOMPLETE | State.QUEUED | State.IN_PROGRESS:
            return "elsewhere"
        case _:
            assert_never(state)
