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
from typing import TYPE_CHECKING

from redis.exceptions import RedisError

from tokenrelay.shared import keys
from tokenrelay.shared.commands import Batch, Call, Reply, reply_word
from tokenrelay.shared.entries import State, text
from tokenrelay.shared.rq_jobs import STATUS_OF, Outcome, close_call, drop_call
from tokenrelay.worker.attempts import Ending
from tokenrelay.worker.unreadable import fail_call, is_unusable, told

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tokenrelay.shared.commands import Argument, Pipeline
    from tokenrelay.worker.attempts import Attempt, InFlight
    from tokenrelay.worker.figures import Figures

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
    """What RQ is to be told. `confirm`: and once more, later. `tries`: how often Redis refused it for good."""

    call: Call
    confirm: bool
    tries: int = 0
    written: Attempt | None = None
    """The attempt whose end this worker wrote: written once more together with the confirmation."""


class Publisher:
    """Sends what the attempts hold and Redis hasn't. `on_drop(attempt)` hears of each that is over for this worker.

    Finishing closes the stream first, then the RQ job, with the next pipeline: never the other way round.
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
        self._closing: deque[_Closing] = deque()  # The heartbeat's thread appends, too.
        self._closing_at = 0.0
        self._confirming: deque[tuple[float, _Closing]] = deque()  # by when
        self._again_at = 0.0
        self._unsent_since: float | None = None

    @property
    def behind(self) -> bool:
        """Whether RQ is still to hear of an ended request."""
        return bool(self._closing)

    @property
    def waits_for_redis(self) -> bool:
        """Whether a pipeline is on its way, or waits for Redis to come back."""
        return self._lock.locked() or time.monotonic() < self._again_at

    def publish(self, attempts: Sequence[Attempt]) -> None:
        """Send what is unpublished, and what RQ is still to hear. What Redis doesn't take is sent again later."""
        with self._lock:
            if time.monotonic() < self._again_at:
                return
            due = [attempt for attempt in attempts if attempt.unpublished and self._in_flight.get(attempt.fence)]
            ready = time.monotonic() >= self._closing_at
            closing = [self._closing.popleft() for _ in range(len(self._closing))] if ready else []
            batch: Batch = [self._call(attempt) for attempt in due]
            if due:
                batch.append(("PUBLISH", keys.WAKE, " ".join(attempt.request_id for attempt in due)))
                self._unsent_since = self._unsent_since or time.monotonic()
            closing += self._to_confirm()
            repeated = [each.written for each in closing if each.written is not None and not each.confirm]
            batch += [self._call(attempt) for attempt in repeated]
            batch += [each.call for each in closing]
            if not batch:
                return
            sent_at = time.monotonic()
            try:
                replies = self._pipeline.run(batch)
            except RedisError as error:
                self._refused_for_now("a step", error)
                self._closing.extendleft(reversed(closing))
                return
            self._keep_failed(closing, replies[len(batch) - len(closing) :])
            now = time.monotonic()
            for attempt, reply in zip(due, replies, strict=False):
                self._receive(attempt, reply, sent_at, now)
            for attempt, reply in zip(repeated, replies[len(batch) - len(closing) - len(repeated) :], strict=False):
                self._confirm_end(attempt, reply)
            if self._unsent_since is not None and self._again_at <= now:
                self.figures.publish_lag_s.observe(now - self._unsent_since)
                self._unsent_since = None

    def settle(self) -> None:
        """Write now what would be written once more later: nobody will be here then."""
        with self._lock:
            self._confirming = deque((0.0, closing) for _, closing in self._confirming)
        self.publish(())
        for _ in range(SETTLE_TRIES):
            if not (reopened := [attempt for attempt in self._in_flight.all() if attempt.reopened]):
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

    def fail(self, attempt: Attempt, reply: Reply) -> None:
        """End an attempt whose keys it can't go on with; `reply` says why."""
        detail = told(reply)
        log.warning("request %s: %s", attempt.request_id, detail)
        self._closing.append(_Closing(fail_call(attempt.request_id, detail), confirm=False))
        self.close(attempt, State.FAILED, detail)

    def abandon(self, attempt: Attempt, why: str) -> None:
        """Forget an attempt that is no longer ours; what RQ says of the job is its new owner's."""
        if not self._in_flight.drop(attempt):
            return
        self._on_drop(attempt)
        self.figures.fenced_writes.add()
        self._closing.append(_Closing(drop_call(attempt.execution), confirm=False))
        context = {"request_id": attempt.request_id, "attempt": attempt.number}
        log.warning("request %s is no longer this worker's: %s", attempt.request_id, why, extra=context)

    def _to_confirm(self) -> list[_Closing]:
        calls, now = [], time.monotonic()
        while self._confirming and self._confirming[0][0] <= now:
            calls.append(self._confirming.popleft()[1])
        return calls

    def _confirm_end(self, attempt: Attempt, reply: Reply) -> None:
        """Take the reply to an end that was written once more; where Redis lacks tokens of it, they are sent again."""
        if isinstance(reply, list) and reply and reply[0] == b"GAP":
            log.warning("request %s: Redis lost the end of its stream; it is written again", attempt.request_id)
            attempt.acknowledged, attempt.reopened = reply[1] - 1, True
            self._in_flight.add(attempt)

    def _call(self, attempt: Attempt) -> Call:
        """The call that sends what is unpublished. What can't be sent, such as text with a lone surrogate, fails its
        request: the tokens that Redis has stay."""
        try:
            return self._built(attempt)
        except BaseException:  # noqa: BLE001  the per-request boundary
            del attempt.tokens[attempt.acknowledged :]
            attempt.fail()
            return self._built(attempt)

    def _built(self, attempt: Attempt) -> Call:
        request_keys = keys.of_request(attempt.request_id)
        pending = attempt.tokens[attempt.acknowledged : attempt.acknowledged + MAX_TOKENS_A_CALL]
        tokens: list[Argument] = [item for text, token_id in pending for item in (text.encode(), token_id)]
        first = attempt.acknowledged + 1
        ending = attempt.ending
        if ending is None or attempt.acknowledged + len(pending) < len(attempt.tokens):
            return Call("append", request_keys, (attempt.fence, first, self._lease_ms, *tokens))
        if ending.finish_reason == "deadline" and not attempt.tokens:
            return Call("expire", request_keys)
        said = (text.encode() for text in (ending.text, ending.code, ending.message))
        end: tuple[Argument, ...] = (ending.state, ending.finish_reason, *said)
        return Call("finish", request_keys, (attempt.fence, first, *end, *tokens))

    def _keep_failed(self, sent: list[_Closing], replies: Sequence[Reply]) -> None:
        """RQ's side is repaired by sending it again; a job that can't be closed costs its own entry only."""
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
            self._closing.append(again)
            self._closing_at = now + RETRY_S

    def _refused_for_now(self, what: str, error: RedisError) -> None:
        """Redis is away, full or can't write its disk: wait a moment, then go on where it stopped."""
        self.figures.redis_errors.add("publish")
        log.warning("Redis didn't take %s: %s; nothing is lost, it is sent again", what, error)
        self._again_at = time.monotonic() + RETRY_S

    def _receive(self, attempt: Attempt, reply: Reply, sent_at: float, now: float) -> None:
        """Take the reply to one attempt's call, which came `now`. One that can't be read fails its request; where that
        can't be written either, the lease runs out."""
        failed = attempt.ending == Ending.internal_error()
        try:
            self._acknowledge(attempt, reply, sent_at, now)
        except BaseException:  # noqa: BLE001  the per-request boundary
            attempt.fail()
            if failed:
                self.abandon(attempt, "a reply of Redis can't be read")

    def _acknowledge(self, attempt: Attempt, reply: Reply, sent_at: float, now: float) -> None:
        """Take the reply to one attempt's call, which came `now`."""
        if is_unusable(reply):
            self.fail(attempt, reply)
            return
        try:
            word = reply_word(reply)
        except RedisError as error:
            self._refused_for_now(f"tokens of request {attempt.request_id}", error)
            return
        match word:
            case "OK" if len(reply) == 1:  # of finish
                assert attempt.ending is not None
                self.figures.appended(attempt, len(attempt.tokens) - attempt.acknowledged, now)
                attempt.acknowledged = len(attempt.tokens)
                self.close(attempt, attempt.ending.state, _summary(attempt), written=True)
            case "OK" if isinstance(reply[1], bytes):  # of expire
                self.close(attempt, State(text(reply[1])), "deadline passed", written=True)
            case "OK" | "GAP":
                self.figures.appended(attempt, reply[1] - 1 - attempt.acknowledged, now)
                attempt.acknowledged = reply[1] - 1
                attempt.renewed_at = sent_at if word == "OK" else attempt.renewed_at
            case "PAST":
                attempt.past_deadline()
            case "DONE":
                state = State(text(reply[1]))
                self.close(attempt, state, f"{state} by somebody else")
            case "LOST":
                self.close(attempt, State.FAILED, "its stream is gone from Redis")
            case "UNREADABLE":
                self.fail(attempt, reply)
            case _:
                self.abandon(attempt, word)


def _summary(attempt: Attempt) -> str:
    ending = attempt.ending
    assert ending is not None
    if ending.state is State.FAILED:
        return f"{ending.code}: {ending.message}"
    return f"{len(attempt.tokens)} tokens, {ending.finish_reason}"
