"""The publisher: every step's tokens to Redis, as one pipeline of fenced appends.

Owns what Redis acknowledged and what to do about each refusal. Nothing is lost by an error: unacknowledged tokens
are sent again, and while Redis is slow or gone they pile up in the attempt, so the engine never waits.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, assert_never

from redis.exceptions import RedisError

from tokenrelay.shared.errors import ProtocolError
from tokenrelay.shared.redis.calls import Unusable, is_unusable
from tokenrelay.shared.store import requests
from tokenrelay.shared.store.jobs import STATUS_OF, Outcome, close_call, drop_call
from tokenrelay.shared.store.replies import (
    Appended,
    Done,
    Early,
    Expired,
    Fenced,
    Finished,
    Gap,
    Lost,
    Past,
    Unreadable,
)
from tokenrelay.shared.store.requests import TerminalEvent
from tokenrelay.shared.wire.entries import State
from tokenrelay.worker.core.attempts import Ending
from tokenrelay.worker.core.unreadable import fail_call, told

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tokenrelay.shared.redis.batches import Pipeline
    from tokenrelay.shared.redis.calls import ScriptCall
    from tokenrelay.shared.redis.commands import Batch, Call, Reply
    from tokenrelay.shared.store.replies import AppendReply, ExpireReply, FinishReply
    from tokenrelay.worker.core.attempts import Attempt, InFlight
    from tokenrelay.worker.core.figures import Figures

    _Publishing = ScriptCall[AppendReply] | ScriptCall[FinishReply] | ScriptCall[ExpireReply]

log = logging.getLogger(__name__)

RETRY_S = 0.1
CONFIRM_S = 2.0
"""When an end is written once more. RQ's own clean-up, if it had read the job before, calls it failed after. And a
failover may have lost the terminal event of a request whose job was closed on the new primary: nobody would look at it
again, and this worker still has its tokens."""
CLOSE_TRIES = 3
"""How often RQ is told of an end where Redis refuses it for good. Then it's maintenance's: the job stays claimed."""
SETTLE_TRIES = 5
"""How often a worker that stops writes an end that Redis has lost."""
MAX_TOKENS_A_CALL = 1000
"""A script's arguments go through Lua's stack, which holds 8,000 values."""


@dataclass(frozen=True, slots=True)
class _Closing:
    """What RQ is to be told, or of a request that nobody can go on with its hash. `confirm`: and once more, later.
    `tries`: how often Redis refused it for good."""

    call: Call
    confirm: bool = False
    tries: int = 0
    written: Attempt | None = None
    """The attempt whose end this worker wrote: written once more together with the confirmation."""


class Publisher:
    """Sends what the attempts hold and Redis hasn't. `on_drop(attempt)` hears of each that is over for this worker.

    Finishing closes the stream first, then the RQ job, with a pipeline of its own: never the other way round.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        in_flight: InFlight,
        lease_ms: int,
        on_drop: Callable[[Attempt], None],
        figures: Figures,
    ) -> None:
        self.figures = figures
        self._pipeline = pipeline
        self._in_flight = in_flight
        self._lease_ms = lease_ms
        self._on_drop = on_drop
        self._lock = threading.Lock()
        self._failing: deque[_Closing] = deque()  # The heartbeat's thread appends to both, too.
        self._closing: deque[_Closing] = deque()
        self._closing_at = 0.0
        self._confirming: deque[tuple[float, _Closing]] = deque()  # by when
        self._again_at = 0.0
        self._unsent_since: float | None = None

    @property
    def behind(self) -> bool:
        """Whether Redis or RQ is still to hear of an ended request."""
        return bool(self._failing or self._closing)

    @property
    def waits_for_redis(self) -> bool:
        """Whether a pipeline is on its way, or waits for Redis to come back."""
        return self._lock.locked() or time.monotonic() < self._again_at

    def publish(self, attempts: Sequence[Attempt]) -> None:
        """Send what is unpublished, and what RQ is still to hear. What Redis doesn't take is sent again later."""
        with self._lock:
            if time.monotonic() < self._again_at:
                return
            # Taken first: the stream of whatever RQ hears of in this round was ended before.
            closing = self._take_due(self._closing) + self._to_confirm()
            ended = [each.written for each in closing if each.written is not None and not each.confirm]
            lost: set[int] = set()
            sent = self._send_tokens(attempts, ended, lost)
            closing = [each for each in closing if id(each.written) not in lost]
            if not (sent and self._tell_rq(closing)):
                self._closing.extendleft(reversed(closing))

    def _send_tokens(self, attempts: Sequence[Attempt], ended: Sequence[Attempt], lost: set[int]) -> bool:
        """Send what is unpublished, and once more the ends of `ended`. False where Redis is away.

        Adds to `lost` the attempts, by id(), whose end Redis hasn't: RQ isn't to be told of it.
        """
        due = [attempt for attempt in attempts if attempt.unpublished and self._in_flight.get(attempt.fence)]
        failing = self._take_due(self._failing)
        calls = [self._call(attempt) for attempt in due]
        repeats = [self._call(attempt) for attempt in ended]
        batch: Batch = [*calls, *repeats]
        if due:
            batch.append(requests.wake(attempt.request_id for attempt in due))
            self._unsent_since = self._unsent_since or time.monotonic()
        batch += [each.call for each in failing]
        if not batch:
            return True
        sent_at = time.monotonic()
        try:
            replies = self._pipeline.run(batch)
        except RedisError as error:
            self._refused_for_now("a step", error)
            self._failing.extendleft(reversed(failing))
            return False
        self._keep_failed(self._failing, failing, replies[len(batch) - len(failing) :])
        now = time.monotonic()
        for attempt, call, reply in zip(due, calls, replies, strict=False):
            self._receive(attempt, call, reply, sent_at, now)
        for attempt, call, reply in zip(ended, repeats, replies[len(due) :], strict=False):
            if not self._confirm_end(attempt, call, reply):
                lost.add(id(attempt))
        if self._unsent_since is not None and self._again_at <= now:
            self.figures.publish_lag_s.observe(now - self._unsent_since)
            self._unsent_since = None
        return True

    def _tell_rq(self, closing: list[_Closing]) -> bool:
        """False where Redis is away."""
        if not closing:
            return True
        try:
            replies = self._pipeline.run([each.call for each in closing])
        except RedisError as error:
            self._refused_for_now("the end of a job", error)
            return False
        self._keep_failed(self._closing, closing, replies)
        return True

    def _take_due(self, told: deque[_Closing]) -> list[_Closing]:
        is_due = time.monotonic() >= self._closing_at
        return [told.popleft() for _ in range(len(told))] if is_due else []

    def settle(self) -> None:
        """Write now what would be written once more later: nobody will be here then."""
        with self._lock:
            self._confirming = deque((0.0, closing) for _, closing in self._confirming)
        self.publish(())
        for _ in range(SETTLE_TRIES):
            time.sleep(max(self._again_at - time.monotonic(), 0.0))
            reopened = [attempt for attempt in self._in_flight.all() if attempt.reopened]
            if not (reopened or self.behind or self._confirming):
                return
            self.publish(reopened)
        self.publish(())

    def close(self, attempt: Attempt, state: State, detail: str, *, written: bool = False) -> None:
        """Forget an ended attempt; RQ hears of it with the next pipeline. `written`: it ended by this worker's call."""
        if not self._in_flight.drop(attempt):
            return
        if not attempt.reopened:
            self._on_drop(attempt)
            self.figures.ended(attempt, state, time.monotonic())
        status = "stopped" if state is State.CANCELLED and attempt.stopped_by_rq else STATUS_OF[state]
        outcome = Outcome(status, attempt.retention_s, detail)
        closing = _Closing(close_call(attempt.execution, outcome), confirm=True, written=attempt if written else None)
        self._closing.append(closing)
        context = {"request_id": attempt.request_id, "attempt": attempt.number}
        log.info("request %s %s: %s", attempt.request_id, state, detail, extra=context)

    def fail(self, attempt: Attempt, reply: Unreadable | Lost | Unusable) -> None:
        """End an attempt whose keys it can't go on with; `reply` says why."""
        detail = told(reply)
        log.warning("request %s: %s", attempt.request_id, detail)
        self._failing.append(_Closing(fail_call(attempt.request_id, detail)))
        self.close(attempt, State.FAILED, detail)

    def abandon(self, attempt: Attempt, why: str) -> None:
        """Forget an attempt that is no longer ours; what RQ says of the job is its new owner's."""
        if not self._in_flight.drop(attempt):
            return
        if not attempt.reopened:
            self._on_drop(attempt)
        self.figures.fenced_writes.add()
        self._closing.append(_Closing(drop_call(attempt.execution)))
        context = {"request_id": attempt.request_id, "attempt": attempt.number}
        log.warning("request %s is no longer this worker's: %s", attempt.request_id, why, extra=context)

    def _to_confirm(self) -> list[_Closing]:
        calls, now = [], time.monotonic()
        while self._confirming and self._confirming[0][0] <= now:
            calls.append(self._confirming.popleft()[1])
        return calls

    def _confirm_end(self, attempt: Attempt, call: _Publishing, reply: Reply) -> bool:
        """Take the reply to an end that was written once more: whether Redis has it. Where it lacks tokens, they are
        sent again; where it has lost the claim, too, the request is whoever claims it next's."""
        try:
            answer = call.parse(reply)
        except (RedisError, ProtocolError):
            return True  # it was written before; this was to see whether it still is
        if isinstance(answer, Gap):
            log.warning("request %s: Redis lost the end of its stream; it is written again", attempt.request_id)
            attempt.acknowledged, attempt.reopened = answer.next_index - 1, True
            self._in_flight.add(attempt)
        return not isinstance(answer, Gap | Fenced)

    def _call(self, attempt: Attempt) -> _Publishing:
        """The call that sends what is unpublished. What can't be sent, such as text with a lone surrogate, fails its
        request: the tokens that Redis has stay."""
        try:
            return self._built(attempt)
        except BaseException:  # noqa: BLE001  the per-request boundary
            del attempt.tokens[attempt.acknowledged :]
            attempt.fail()
            return self._built(attempt)

    def _built(self, attempt: Attempt) -> _Publishing:
        request_id, fence, first = attempt.request_id, attempt.fence, attempt.acknowledged + 1
        pending = attempt.tokens[attempt.acknowledged : attempt.acknowledged + MAX_TOKENS_A_CALL]
        ending = attempt.ending
        if ending is None or attempt.acknowledged + len(pending) < len(attempt.tokens):
            return requests.append(request_id, fence, first, pending, self._lease_ms)
        if ending.finish_reason == "deadline" and not attempt.tokens:
            return requests.expire(request_id)
        end = TerminalEvent(ending.state, ending.finish_reason, ending.text, ending.code, ending.message)
        return requests.finish(request_id, fence, first, pending, end)

    def _keep_failed(self, told: deque[_Closing], sent: list[_Closing], replies: Sequence[Reply]) -> None:
        """What was refused is sent again; a job that can't be closed costs its own entry only."""
        now = time.monotonic()
        for each, reply in zip(sent, replies, strict=True):
            if not isinstance(reply, Exception):
                if each.confirm:
                    self._confirming.append((now + CONFIRM_S, replace(each, confirm=False)))
                continue
            refused = is_unusable(reply)
            again = replace(each, tries=each.tries + refused)
            if again.tries >= CLOSE_TRIES:
                log.warning("RQ can't be told of %s: %s", each.call.keys[0], reply)
                continue
            told.append(again)
            self._closing_at = now + RETRY_S

    def _refused_for_now(self, what: str, error: RedisError) -> None:
        """Redis is away, full or can't write its disk: wait a moment, then go on where it stopped."""
        self.figures.redis_errors.add("publish")
        log.warning("Redis didn't take %s: %s; nothing is lost, it is sent again", what, error)
        self._again_at = time.monotonic() + RETRY_S

    def _receive(self, attempt: Attempt, call: _Publishing, reply: Reply, sent_at: float, now: float) -> None:
        """Take the reply to one attempt's call, which came `now`. One that can't be read fails its request; where that
        can't be written either, the lease runs out."""
        failed = attempt.ending == Ending.internal_error()
        try:
            self._acknowledge(attempt, call.parse(reply), sent_at, now)
        except RedisError as error:
            self._refused_for_now(f"tokens of request {attempt.request_id}", error)
        except BaseException:  # noqa: BLE001  the per-request boundary
            attempt.fail()
            if failed:
                self.abandon(attempt, "a reply of Redis can't be read")

    def _acknowledge(
        self, attempt: Attempt, reply: AppendReply | FinishReply | ExpireReply | Unusable, sent_at: float, now: float
    ) -> None:
        match reply:
            case Appended(next_index):
                self._advance(attempt, next_index, now)
                attempt.renewed_at = sent_at
            case Gap(next_index):
                self._advance(attempt, next_index, now)
            case Finished():
                assert attempt.ending is not None
                self._advance(attempt, len(attempt.tokens) + 1, now)
                self.close(attempt, attempt.ending.state, _summary(attempt), written=True)
            case Expired(state):
                self.close(attempt, state, "deadline passed", written=True)
            case Past():
                attempt.past_deadline()
            case Done(state):
                self.close(attempt, state, f"{state} by somebody else")
            case Lost():
                self.close(attempt, State.FAILED, "its stream is gone from Redis")
            case Unreadable() | Unusable():
                self.fail(attempt, reply)
            case Fenced() | Early():
                self.abandon(attempt, type(reply).__name__.upper())
            case _:
                assert_never(reply)

    def _advance(self, attempt: Attempt, next_index: int, now: float) -> None:
        self.figures.appended(attempt, next_index - 1 - attempt.acknowledged, now)
        attempt.acknowledged = next_index - 1


def _summary(attempt: Attempt) -> str:
    ending = attempt.ending
    assert ending is not None
    if ending.state is State.FAILED:
        return f"{ending.code}: {ending.message}"
    return f"{len(attempt.tokens)} tokens, {ending.finish_reason}"
