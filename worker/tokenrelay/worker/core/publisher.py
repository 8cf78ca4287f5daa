"""The publisher: what the attempts hold and Redis hasn't, as one pipeline of fenced calls a turn of the loop.

Appends and ends, renewals of leases that no append renews, cancellations, and once more the ends that a failover may
have lost. Nothing is lost by an error: what Redis didn't accept is sent again, and while Redis is slow or unavailable
tokens pile up in the attempt, so the engine never waits.

Runs in the loop's thread, on the token plane only: RQ's jobs are closed through `Closings`.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Final, assert_never

from redis.exceptions import RedisError

from tokenrelay.shared.errors import ProtocolError
from tokenrelay.shared.redis.calls import Unusable, is_unusable
from tokenrelay.shared.store import requests
from tokenrelay.shared.store.jobs import Outcome, job_status
from tokenrelay.shared.store.replies import (
    Appended,
    Cancelled,
    Done,
    Early,
    Expired,
    Fenced,
    Finished,
    Gap,
    Lost,
    Past,
    Renewed,
    Scored,
    Unreadable,
    describe,
)
from tokenrelay.shared.store.requests import Append, TerminalEvent
from tokenrelay.shared.wire.entries import State
from tokenrelay.worker.core.attempts import Ending
from tokenrelay.worker.core.closings import Closing, Closings

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from tokenrelay.shared.redis.batches import Pipeline
    from tokenrelay.shared.redis.calls import ScriptCall
    from tokenrelay.shared.redis.commands import Batch, Reply
    from tokenrelay.shared.store.replies import (
        AppendReply,
        CancelReply,
        ExpireReply,
        FailReply,
        FinishReply,
        RenewReply,
        ScoreReply,
    )
    from tokenrelay.worker.core.attempts import Attempt
    from tokenrelay.worker.core.figures import Figures

    _Publication = ScriptCall[ScoreReply] | Append | ScriptCall[FinishReply] | ScriptCall[ExpireReply]
    _Control = ScriptCall[RenewReply] | ScriptCall[CancelReply]
    _Reply = ScoreReply | AppendReply | FinishReply | ExpireReply | RenewReply | CancelReply | Unusable
    _EndReply = Finished | Expired | Cancelled | Done | Lost | Unreadable | Unusable | Fenced | Early

log = logging.getLogger(__name__)

RETRY_S: Final = 0.1
LEASE_SHARE: Final = 6
"""A request that got tokens within this part of its lease needs no renewal."""
MOST_CONTROLS: Final = 32
"""Renewals and cancellations in one pipeline: a step's tokens don't wait for hundreds of them."""
MAX_TOKENS_A_CALL: Final = 1000
"""A script's arguments go through Lua's stack, which holds 8,000 values."""
MAX_JOINED_ARGUMENTS: Final = 256
"""Appends of about fifty requests go out as one call, if they have a token each: Redis does nothing else meanwhile."""


@dataclass(slots=True)
class _Batch:
    """The calls of one pipeline, in their order."""

    appends: list[list[tuple[Attempt, Append]]]
    """By the calls that they're joined to."""
    others: list[tuple[Attempt, _Publication]]
    controls: list[tuple[Attempt, _Control]]
    failures: list[tuple[Closing, ScriptCall[FailReply]]]
    confirmations: list[tuple[Closing, _Publication]]

    def commands(self) -> Batch:
        batch: Batch = [requests.joined([append for _, append in part]) for part in self.appends]
        parts = (self.others, self.controls, self.failures, self.confirmations)
        batch += [call for part in parts for _, call in part]
        written = [attempt.request_id for part in self.appends for attempt, _ in part]
        written += [attempt.request_id for attempt, _ in self.others]
        if written:
            batch.append(requests.wake(written))
        return batch


@dataclass(slots=True)
class Publisher:
    """Sends what the attempts hold and Redis hasn't."""

    pipeline: Pipeline
    lease_ms: int
    closings: Closings
    figures: Figures
    _controls: dict[str, _Control] = field(default_factory=dict)
    """Renewals and cancellations that are to be sent, by fence."""
    _failures: list[tuple[Closing, ScriptCall[FailReply]]] = field(default_factory=list)
    """Ends of requests that no worker can continue."""
    _over: dict[str, Attempt] = field(default_factory=dict)
    """The attempts that the replies to this pipeline ended, by fence."""
    unsent: bool = False
    """Whether the last pipeline left tokens, ends or confirmations to send."""
    _unsent_since: float | None = None
    _retry_at: float = 0.0

    @property
    def behind(self) -> bool:
        """Whether the end of a request isn't in its stream or its job yet."""
        return bool(self._failures) or self.closings.unacknowledged

    @property
    def backing_off(self) -> bool:
        """Whether the publisher waits before its next try, after an error."""
        return time.monotonic() < self._retry_at

    @property
    def due_in_s(self) -> float:
        """How long until what is left may be sent; infinity where nothing is."""
        left = self.unsent or self._controls or self._failures
        return max(self._retry_at - time.monotonic(), 0.0) if left else float("inf")

    def renew_idle(self, attempts: Iterable[Attempt]) -> None:
        """Renew the leases that no append has renewed lately. The replies also tell of requests that were cancelled or
        taken over, or are past their deadlines."""
        recently = time.monotonic() - self.lease_ms / 1000 / LEASE_SHARE
        for attempt in attempts:
            if attempt.renewed_at is None or attempt.renewed_at < recently:
                self.renew(attempt)

    def renew(self, attempt: Attempt) -> None:
        """Renew one lease with the next pipeline."""
        self._controls.setdefault(attempt.fence, requests.renew(attempt.request_id, attempt.fence, self.lease_ms))

    def cancel(self, attempt: Attempt, cancelled_by: str) -> None:
        """End a request as cancelled with the next pipeline."""
        self._controls[attempt.fence] = requests.cancel(attempt.request_id, cancelled_by)

    def publish(self, attempts: dict[str, Attempt]) -> list[Attempt]:
        """Send what is due. Removes from `attempts` those that are over for this worker, and returns them; puts back
        those whose end Redis has lost."""
        if self.backing_off:
            return []
        batch = self._batch(attempts)
        commands = batch.commands()
        if not commands:
            self.unsent = False
            return []
        sent_at = time.monotonic()
        if batch.appends or batch.others:
            self._unsent_since = self._unsent_since or sent_at
        try:
            replies = self.pipeline.run(commands)
        except RedisError as error:
            self._put_back(batch)
            self._back_off("a step", error)
            return []
        self._receive(batch, iter(replies), attempts, sent_at)
        over, self._over = self._over, {}
        for fence in over:
            del attempts[fence]
        self.unsent = any(attempt.unpublished for attempt in attempts.values())
        return list(over.values())

    def _batch(self, attempts: dict[str, Attempt]) -> _Batch:
        """Everything that is due. A control call stays until it is answered."""
        self._controls = {fence: call for fence, call in self._controls.items() if fence in attempts}
        failures, self._failures = self._failures, []
        appends: list[tuple[Attempt, Append]] = []
        others: list[tuple[Attempt, _Publication]] = []
        for attempt in attempts.values():
            if attempt.unpublished:
                call = self._publication(attempt)
                if isinstance(call, Append):
                    appends.append((attempt, call))
                else:
                    others.append((attempt, call))
        return _Batch(
            list(_parts(appends)),
            others,
            [(attempts[fence], call) for fence, call in islice(self._controls.items(), MOST_CONTROLS)],
            failures,
            [(closing, self._publication(closing.attempt)) for closing in self.closings.due()],
        )

    def _put_back(self, batch: _Batch) -> None:
        """Redis is unavailable: all of it is sent again."""
        self.unsent = bool(batch.appends or batch.others or batch.confirmations)
        self._failures = batch.failures
        self.closings.put_back([closing for closing, _ in batch.confirmations])

    def _publication(self, attempt: Attempt) -> _Publication:
        """The call that sends what is unpublished. What can't be sent, such as text with a lone surrogate, fails its
        request: the tokens that Redis has stay."""
        try:
            return publication(attempt, self.lease_ms)
        except BaseException:  # noqa: BLE001  the per-request boundary
            del attempt.tokens[attempt.acknowledged :]
            attempt.fail()
            return publication(attempt, self.lease_ms)

    def _receive(self, batch: _Batch, replies: Iterator[Reply], attempts: dict[str, Attempt], sent_at: float) -> None:
        now = time.monotonic()
        for part in batch.appends:
            for (attempt, append), reply in zip(part, requests.parted(next(replies), len(part)), strict=True):
                self._answer(attempt, append, reply, sent_at, now)
        for attempt, call in batch.others:
            self._answer(attempt, call, next(replies), sent_at, now)
        if (batch.appends or batch.others) and not self.backing_off:
            self.figures.publish_lag_s.observe(now - (self._unsent_since or now))
            self._unsent_since = None
        for attempt, control in batch.controls:
            reply = next(replies)
            if not isinstance(reply, Exception):
                del self._controls[attempt.fence]
            if attempt.fence not in self._over:
                self._answer(attempt, control, reply, sent_at, now)
        for closing, failure in batch.failures:
            self._failed(closing, failure, next(replies))
        for closing, call in batch.confirmations:
            self._confirm(closing, call, next(replies), attempts)

    def _answer(
        self, attempt: Attempt, call: _Publication | _Control, reply: Reply, sent_at: float, now: float
    ) -> None:
        """Take the reply to one attempt's call, which came `now`. One that can't be read fails its request; where that
        can't be written either, the lease runs out."""
        try:
            self._apply(attempt, call.parse(reply), sent_at, now)
        except RedisError as error:
            self._back_off(f"a call of request {attempt.request_id}", error)
        except BaseException:  # noqa: BLE001  the per-request boundary
            failed_before = attempt.ending == Ending.internal_error()
            attempt.fail()
            if failed_before:
                self._abandon(attempt, "a reply of Redis can't be read")

    def _apply(self, attempt: Attempt, reply: _Reply, sent_at: float, now: float) -> None:
        match reply:
            case Appended(next_index):
                self._acknowledge(attempt, next_index, now)
                attempt.renewed_at = sent_at
            case Gap(next_index):
                self._acknowledge(attempt, next_index, now)
                attempt.scored &= next_index > 1  # lost with the first token, which came behind it
            case Scored():
                attempt.scored = True
            case Renewed():
                pass
            case Past():
                attempt.past_deadline()
            case Finished():
                self._acknowledge(attempt, len(attempt.tokens) + 1, now)
                self._apply_end(attempt, reply)
            case _:
                self._apply_end(attempt, reply)

    def _apply_end(self, attempt: Attempt, reply: _EndReply) -> None:
        match reply:
            case Finished():
                assert attempt.ending is not None
                self._end(attempt, attempt.ending.state, _summary(attempt), written=True)
            case Expired(state):
                self._end(attempt, state, "deadline passed", written=True)
            case Cancelled():
                self._end(attempt, State.CANCELLED, "cancelled")
            case Done(state):
                self._end(attempt, state, f"{state} by somebody else")
            case Lost():
                self._end(attempt, State.FAILED, "its keys are gone from Redis")
            case Unreadable() | Unusable():
                self._fail(attempt, describe(reply))
            case Fenced() | Early():
                self._abandon(attempt, type(reply).__name__.upper())
            case _:
                assert_never(reply)

    def _acknowledge(self, attempt: Attempt, next_index: int, now: float) -> None:
        self.figures.appended(attempt, next_index - 1 - attempt.acknowledged, now)
        attempt.acknowledged = next_index - 1

    def _end(self, attempt: Attempt, state: State, detail: str, *, written: bool = False) -> None:
        """The request has ended. `written`: by this worker's call."""
        self.closings.close(self._ended(attempt, state, detail, written=written))

    def _fail(self, attempt: Attempt, detail: str) -> None:
        """End a request whose keys no worker can continue; its job is closed after that."""
        log.warning("request %s: %s", attempt.request_id, detail)
        closing = self._ended(attempt, State.FAILED, detail, written=False)
        self._failures.append((closing, requests.fail(attempt.request_id, detail)))

    def _ended(self, attempt: Attempt, state: State, detail: str, *, written: bool) -> Closing:
        self._over[attempt.fence] = attempt
        if not attempt.reopened:
            self.figures.ended(attempt, state, time.monotonic())
        context = {"request_id": attempt.request_id, "attempt": attempt.number}
        log.info("request %s %s: %s", attempt.request_id, state, detail, extra=context)
        status = "stopped" if state is State.CANCELLED and attempt.stopped_by_rq else job_status(state)
        return Closing(attempt, Outcome(status, attempt.retention_s, detail), written)

    def _abandon(self, attempt: Attempt, why: str) -> None:
        """Forget an attempt that is no longer ours; what RQ says of the job is its new owner's."""
        self._over[attempt.fence] = attempt
        self.figures.fenced_writes.add()
        self.closings.drop(attempt)
        context = {"request_id": attempt.request_id, "attempt": attempt.number}
        log.warning("request %s is no longer this worker's: %s", attempt.request_id, why, extra=context)

    def _failed(self, closing: Closing, call: ScriptCall[FailReply], reply: Reply) -> None:
        """Take the reply to a request's failure. Keys that can't be written to either keep nobody waiting."""
        if isinstance(reply, Exception) and not is_unusable(reply):
            self._failures.append((closing, call))
            self._back_off(f"the end of request {closing.attempt.request_id}", reply)
        else:
            self.closings.close(closing)

    def _confirm(self, closing: Closing, call: _Publication, reply: Reply, attempts: dict[str, Attempt]) -> None:
        """Take the reply to an end that was written once more. Where Redis lacks tokens of it, they are sent again;
        where it has lost the claim, too, the request is whoever claims it next's."""
        try:
            answer = call.parse(reply)
        except (RedisError, ProtocolError):
            answer = None  # it was written before; this was to see whether it still is
        attempt = closing.attempt
        if isinstance(answer, Gap):
            log.warning("request %s: Redis lost the end of its stream; it is written again", attempt.request_id)
            attempt.acknowledged, attempt.reopened = answer.next_index - 1, True
            attempt.scored &= answer.next_index > 1
            attempts[attempt.fence] = attempt
        elif not isinstance(answer, Fenced):
            self.closings.close_again(closing)

    def _back_off(self, what: str, error: Exception) -> None:
        """Redis is unavailable, full, or can't write its disk: retry after a moment."""
        self.figures.redis_errors.add("publish")
        log.warning("Redis didn't accept %s: %s; nothing is lost, it is sent again", what, error)
        self._retry_at = time.monotonic() + RETRY_S


def _parts(appends: Iterable[tuple[Attempt, Append]]) -> Iterator[list[tuple[Attempt, Append]]]:
    """Those that go out as one call."""
    part: list[tuple[Attempt, Append]] = []
    size = 0
    for attempt, append in appends:
        size += len(append.args)
        if part and size > MAX_JOINED_ARGUMENTS:
            yield part
            part, size = [], len(append.args)
        part.append((attempt, append))
    if part:
        yield part


def publication(attempt: Attempt, lease_ms: int) -> _Publication:
    """The call that sends what Redis lacks of an attempt: its prompt's log-probabilities, then its tokens, and its end
    with the last of them."""
    request_id, fence, before, ending = attempt.request_id, attempt.fence, attempt.acknowledged, attempt.ending
    if (prompt_logprobs := attempt.unscored) is not None:
        return requests.score(request_id, fence, prompt_logprobs)
    first, pending = before + 1, attempt.tokens[before : before + MAX_TOKENS_A_CALL]
    if ending is None or before + len(pending) < len(attempt.tokens):
        return requests.append(request_id, fence, first, pending, lease_ms)
    if ending.finish_reason == "deadline" and not attempt.tokens:
        return requests.expire(request_id)
    end = TerminalEvent(ending.state, ending.finish_reason, ending.text, ending.code, ending.message)
    return requests.finish(request_id, fence, first, pending, end)


def _summary(attempt: Attempt) -> str:
    ending = attempt.ending
    assert ending is not None
    if ending.state is State.FAILED:
        return f"{ending.code}: {ending.message}"
    return f"{len(attempt.tokens)} tokens, {ending.finish_reason}"
