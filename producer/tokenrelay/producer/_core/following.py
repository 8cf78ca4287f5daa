"""Reading a request's stream as it grows: from any token, over reconnects, and to an end in every case.

XREAD BLOCK doesn't wake on DEL or expiry, so a block that ran out is followed by a look at the request's hash and then,
once more, at its stream. Every read looks at the last entry again, in the same round trip: redis-py reconnects by
itself, and a replica that took over may hold less, or something else, than was read.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from redis.exceptions import AuthenticationError, BusyLoadingError, NoPermissionError

from tokenrelay.producer._core.endings import cancel, expire
from tokenrelay.producer._core.steps import LOST, Pause, RoundTrip, Wait, ask, raise_on_error
from tokenrelay.shared.errors import (
    RequestError,
    StreamChanged,
    StreamTimeout,
)
from tokenrelay.shared.redis.commands import server_time, server_time_us
from tokenrelay.shared.store import request_view
from tokenrelay.shared.store.jobs import status_look
from tokenrelay.shared.store.record import Field, RequestRecord, look
from tokenrelay.shared.store.registrations import is_alive, time_left
from tokenrelay.shared.store.request_view import RequestView
from tokenrelay.shared.wire import keys
from tokenrelay.shared.wire.entries import AnyEntry, Ended, EntryId, Started, State, Token, Usage, parse_entry
from tokenrelay.shared.wire.keys import Plane
from tokenrelay.shared.wire.transitions import StreamMachine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tokenrelay.producer._core.steps import Steps
    from tokenrelay.shared.redis.commands import Batch, Reply

_FIELDS: Final = (*request_view.FIELDS, Field.QUEUE)
_COUNT: Final = 512
_PATIENCE_S: Final = 15.0
_RECONNECT_PAUSE_S: Final = 0.2
_WORKERS_S: Final = 5.0
"""Interval for asking RQ about a queued request. Hundreds of readers may wait in one process."""


@dataclass(frozen=True, slots=True)
class Reading:
    """How a reader reads. `expires`: it may write, and ends requests past their deadline."""

    expires: bool
    block_s: float = 1.0
    on_no_worker: Callable[[str], None] = lambda queue: None
    """Called with the queue's name while the request is queued and no live worker serves it."""
    clock: Callable[[], float] = time.monotonic


class Follower:
    """One reader's place in one stream, behind token `after`. Made for one `read` at a time."""

    def __init__(self, request_id: str, reading: Reading, *, after: int = 0) -> None:
        self.request_id = request_id
        self._reading = reading
        self._machine = StreamMachine(request_id, after)
        self._last = EntryId(after, 0)
        self._last_at_us: int | None = None
        self._last_raw: Any = None
        self._first = after + 1
        self._read: list[tuple[int, str]] = []
        self._prompt_tokens = 0
        self._stale = True
        self._connected = False
        self._overdue_at = float("inf")
        self._workers_at = float("-inf")
        self._until = float("inf")

    @property
    def ended(self) -> bool:
        return self._machine.ended

    def read(self, until: float | None = None) -> Steps[list[AnyEntry]]:
        """The next entries, at least one, as soon as they're there. `until`: monotonic time.

        Raises StreamTimeout past `until`, StreamExpired, StreamGap, StreamChanged, ProtocolError.
        """
        self._until = float("inf") if until is None else until
        entries: list[AnyEntry] = []
        while not entries:
            entries = yield from (self._poll() if self._stale else self._wait())
            if not entries and self._now() >= self._until:
                raise StreamTimeout(
                    f"request {self.request_id} hasn't ended in the time given; it keeps running",
                    request_id=self.request_id,
                )
        return entries

    def _wait(self) -> Steps[list[AnyEntry]]:
        """What comes within the block time; nothing where the next read should look."""
        left_s = min(self._overdue_at, self._until) - self._now()
        # Half of it before RQ was asked for the first time: the warning that no worker is there shouldn't be late.
        block_s = self._reading.block_s / (2 if self._workers_at < 0 else 1)
        block_ms = max(1, int(min(block_s, left_s) * 1000))
        raw, last = yield from self._ask(Wait(keys.stream(self.request_id), str(self._last), block_ms))
        yield from self._check_last(last)
        entries = self._receive(raw)
        self._stale = not entries
        return entries

    def _poll(self) -> Steps[list[AnyEntry]]:
        """What is there now. Ends the wait where nothing will come: gone, overwritten, or past the deadline."""
        request, queue, raw = yield from self._inspect()
        yield from self._check_last(raw[:1])
        entries = self._receive(raw)
        if entries:
            self._stale = len(raw) >= _COUNT  # more than one read takes: the next is a look too, and waits for nobody
            return entries
        overdue = self._now() >= self._overdue_at
        if request.state.terminal and self._last_at_us is None and request.tokens < self._last.token:
            raise RequestError(
                f"after: {self._last.token}; request {self.request_id} has ended with {request.tokens} tokens",
                field="after",
                limit=request.tokens,
                request_id=self.request_id,
            )
        if request.state.terminal or (overdue and request.tokens < self._last.token):
            request.raise_changed(self._last)  # its end would be in the stream, behind the last entry
        if overdue and not self._reading.expires:
            return self._receive_overdue(request)
        if overdue:
            yield from expire(self.request_id)
        elif request.state == State.QUEUED and self._now() >= self._workers_at:
            self._workers_at = self._now() + _WORKERS_S
            yield from self._ask_rq(queue)
        self._stale = False
        return []

    def _inspect(self) -> Steps[tuple[RequestView, str, list[Any]]]:
        """The hash, and then the stream from the last entry on: an end that the hash shows is in the stream too."""
        stream = keys.stream(self.request_id)
        batch: Batch = [look(self.request_id, _FIELDS), server_time(Plane.TOKEN), ("XLEN", stream)]
        batch.append(("XRANGE", stream, str(self._last), "+", "COUNT", _COUNT))
        held, now, length, raw = yield from self._ask(RoundTrip(batch))
        record = RequestRecord(_FIELDS, held)
        request_view.check_stream(self.request_id, exists=record.exists and bool(length))
        request = RequestView.of(self.request_id, record, server_time_us(now))
        self._overdue_at = self._now() + request.overdue_in_s(may_expire=self._reading.expires)
        return request, record.queue, raw

    def _receive(self, raw: Iterable[Any]) -> list[AnyEntry]:
        """The new ones among entries as Redis gave them."""
        entries = []
        for raw_id, fields in raw:
            entry = parse_entry(raw_id, fields)
            if self._machine.receive(entry):
                entries.append(entry)
                self._last, self._last_at_us, self._last_raw = entry.entry_id, entry.at_us, (raw_id, fields)
                if isinstance(entry, Token):
                    self._read.append((entry.token_id, entry.text))
                if isinstance(entry, Started):
                    self._prompt_tokens = entry.prompt_tokens
        return entries

    def _check_last(self, raw: Iterable[Any]) -> Steps[None]:
        """Compare the entry that was read last with what Redis has now. A missing one may reappear."""
        for raw_id, fields in raw:
            if (raw_id, fields) == self._last_raw:
                return
            entry = parse_entry(raw_id, fields)
            if entry.entry_id != self._last:
                return
            if self._last_at_us not in (None, entry.at_us):
                yield from self._compare_past()
            self._last_at_us = entry.at_us

    def _compare_past(self) -> Steps[None]:
        """Compare all tokens that were read: Redis lost writes, and a worker wrote them again. Raises StreamChanged."""
        (raw,) = yield from self._ask(
            RoundTrip([("XRANGE", keys.stream(self.request_id), f"{self._first}-0", f"{self._last.token}-0")])
        )
        entries = (parse_entry(raw_id, fields) for raw_id, fields in raw)
        now = [(entry.token_id, entry.text) for entry in entries if isinstance(entry, Token)]
        if now != self._read:
            raise StreamChanged(
                f"tokens {self._first} to {self._last.token} of request {self.request_id} aren't the ones that were "
                "read: Redis lost writes, and they came out differently",
                request_id=self.request_id,
            )

    def _receive_overdue(self, request: RequestView) -> list[AnyEntry]:
        """The terminal event that no process wrote, under the ID that it would have had."""
        ended = Ended(
            entry_id=EntryId(self._last.token, self._last.event + 1),
            at_us=request.deadline_us,
            state=request.overdue_state,
            finish_reason="deadline",
            text="",
            usage=Usage(self._prompt_tokens, request.tokens),
        )
        self._machine.receive(ended)
        return [ended]

    def _ask_rq(self, queue: str) -> Steps[None]:
        """Cancel a request whose job is gone from RQ; report that no live worker serves its queue."""
        try:
            batch: Batch = [("SMEMBERS", keys.rq_workers(queue)), status_look(self.request_id)]
            workers, status = yield from ask(batch)
            left_ms = (yield from ask([time_left(worker) for worker in workers])) if workers else []
        except (NoPermissionError, *LOST, BusyLoadingError):
            return  # a read-only consumer needn't see RQ's keys, and the stream grows without their server
        if self._reading.expires and status in (None, b"canceled", "canceled"):
            # The job was cancelled, deleted or its queue emptied through RQ: nobody will ever take it.
            yield from cancel(self.request_id, "rq")
        elif not any(map(is_alive, left_ms)):
            self._reading.on_no_worker(queue)

    def _ask(self, item: RoundTrip | Wait) -> Steps[list[Reply]]:
        """The replies. Retries over a restart or failover of Redis, but fails at once if Redis has never replied."""
        give_up_at = min(self._now() + (_PATIENCE_S if self._connected else 0), self._until)
        while True:
            try:
                replies = raise_on_error((yield item))
            except AuthenticationError:
                raise
            except (*LOST, BusyLoadingError):
                if self._now() >= give_up_at:
                    raise
                yield Pause(_RECONNECT_PAUSE_S)
            else:
                self._connected = True
                return replies

    def _now(self) -> float:
        return self._reading.clock()
