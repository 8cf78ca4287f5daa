"""Summaries of many requests, from their hashes and the ends of their streams.

Only a stream's first and last entries are read, so the cost doesn't depend on the answer's length. All times are on
Redis's clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final, Literal

from redis.exceptions import NoPermissionError

from tokenrelay.producer._core.steps import RoundTrip, check_reply
from tokenrelay.shared.errors import ProtocolError
from tokenrelay.shared.store.jobs import holder_look
from tokenrelay.shared.store.record import Field, RequestRecord, look
from tokenrelay.shared.store.request_view import lease_left_s
from tokenrelay.shared.wire import keys
from tokenrelay.shared.wire.entries import AnyEntry, Ended, Migrated, Queued, Started, State, Token, parse_entry, text

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tokenrelay.producer._core.steps import Steps
    from tokenrelay.shared.redis.commands import Batch, Reply

TAIL: Final = 64
"""Entries read from each stream's end."""
_PER_ROUND: Final = 40
"""Requests per round trip: 2 ms of Redis's time, during which workers can't append."""
_FIELDS: Final = (
    Field.STATE,
    Field.QUEUE,
    Field.NEXT,
    Field.ATTEMPT,
    Field.FENCE,
    Field.LEASE_US,
    Field.DEADLINE_US,
)
Place = Literal["queued", "running", "finished", "failed", "canceled"]


@dataclass(frozen=True, slots=True)
class RequestRef:
    """A request's ID and its place in RQ. Within a place, a larger `score` is newer."""

    request_id: str
    queue: str
    place: Place
    score: float = 0.0


@dataclass(frozen=True, slots=True)
class Migration:
    """One takeover."""

    request_id: str
    at_us: int
    worker: str
    attempt: int
    resumed_at: int


@dataclass(frozen=True, slots=True)
class RequestSummary:
    """One request. Times are microseconds since the epoch on Redis's clock; None if it hasn't happened yet."""

    request_id: str
    queue: str
    state: State
    tokens: int
    attempts: int
    owned: bool
    """Whether a worker owns it; `lease_us` is the lease's end."""
    lease_us: int
    deadline_us: int
    worker: str | None
    queued_us: int
    started_us: int | None
    first_token_us: int | None
    ended_us: int | None
    tail_us: tuple[int, ...]
    """Times of the last tokens, oldest first: at most TAIL."""
    migrations: tuple[Migration, ...]
    """Those among the stream's last entries."""

    @property
    def running(self) -> bool:
        """Whether a worker owns it; otherwise it's queued or has ended."""
        return self.owned and not self.state.terminal

    @property
    def queue_wait_ms(self) -> float | None:
        return None if self.started_us is None else (self.started_us - self.queued_us) / 1000

    @property
    def ttft_ms(self) -> float | None:
        return None if self.first_token_us is None else (self.first_token_us - self.queued_us) / 1000

    @property
    def gaps_ms(self) -> tuple[float, ...]:
        """Inter-token times of the tail."""
        return tuple((after - before) / 1000 for before, after in pairwise(self.tail_us))

    def lease_left_s(self, now_us: int) -> float:
        """Seconds until the owner's lease ends; 0 without one."""
        return lease_left_s(self.state, self.lease_us, now_us, owned=self.owned)

    def age_s(self, now_us: int) -> float:
        """Time from submit until its end, or until now."""
        return max(0.0, ((self.ended_us or now_us) - self.queued_us) / 1e6)


def list_queued(queue: str, first: int, last: int) -> Steps[list[RequestRef]]:
    """Requests `first` to `last` of a queue, counted from the newest."""
    (found,) = yield RoundTrip([("LRANGE", keys.rq_queue(queue), -1 - last, -1 - first)])
    return [RequestRef(text(item), queue, "queued") for item in reversed(check_reply(found))]


def list_registry(
    places: Sequence[tuple[str, Place]], first: int, last: int, *, newest: bool
) -> Steps[list[RequestRef]]:
    """Requests `first` to `last` of each queue's claimed set or registry, counted from the newest or oldest, merged."""
    end = ("REV", "WITHSCORES") if newest else ("WITHSCORES",)
    batch: Batch = [("ZRANGE", _key(queue, place), first, last, *end) for queue, place in places]
    replies = (yield RoundTrip(batch)) if batch else []
    found = []
    for (queue, place), reply in zip(places, replies, strict=True):
        found += [RequestRef(text(member), queue, place, score) for member, score in check_reply(reply)]
    return sorted(found, key=lambda one: one.score, reverse=newest)


def read_summaries(found: Iterable[RequestRef], *, tail: int = TAIL) -> Steps[list[RequestSummary]]:
    """Read the requests, without missing or malformed ones. Raises NoPermissionError."""
    ids = list({one.request_id: one for one in found if keys.is_request_id(one.request_id)})
    seen: list[RequestSummary] = []
    for first in range(0, len(ids), _PER_ROUND):
        seen += yield from _some(ids[first : first + _PER_ROUND], tail)
    return seen


def _some(ids: Sequence[str], tail: int) -> Steps[list[RequestSummary]]:
    batch: Batch = []
    for request_id in ids:
        stream = keys.stream(request_id)
        batch += [
            look(request_id, _FIELDS),
            ("XRANGE", stream, "0-1", "0-2"),
            ("XRANGE", stream, "1-0", "1-0"),
            ("XREVRANGE", stream, "+", "-", "COUNT", tail),
        ]
    replies = yield RoundTrip(batch)
    holders = yield RoundTrip([holder_look(request_id) for request_id in ids])
    for reply in (*replies, *holders):
        if isinstance(reply, NoPermissionError):
            raise reply
    seen = [
        _summary(request_id, holder, replies[4 * number : 4 * number + 4])
        for number, (request_id, holder) in enumerate(zip(ids, holders, strict=True))
    ]
    return [sighting for sighting in seen if sighting is not None]


def _key(queue: str, place: Place) -> str:
    return keys.claimed(queue) if place == "running" else keys.rq_registry(place, queue)


def _summary(request_id: str, holder: Reply, replies: Sequence[Reply]) -> RequestSummary | None:
    held, *ranges = replies
    if any(isinstance(reply, Exception) for reply in (holder, *replies)):
        return None
    record = RequestRecord(_FIELDS, held)
    try:
        head, first, tail = ([parse_entry(*item) for item in found] for found in ranges)
        return RequestSummary(
            request_id=request_id,
            queue=record.queue,
            state=record.state,
            tokens=record.tokens,
            attempts=record.attempts,
            owned=record.owned,
            lease_us=record.lease_us,
            deadline_us=record.deadline_us,
            worker=text(holder) if holder else None,
            **_times(request_id, head, first, tail[::-1]),
        )
    except (ProtocolError, ValueError, StopIteration):
        return None


def _times(
    request_id: str, head: Sequence[AnyEntry], first: Sequence[AnyEntry], tail: Sequence[AnyEntry]
) -> dict[str, Any]:
    """Times of a request's events. Raises StopIteration if the stream's first entry is gone."""
    return {
        "queued_us": next(entry.at_us for entry in head if isinstance(entry, Queued)),
        "started_us": next((entry.at_us for entry in head if isinstance(entry, Started)), None),
        "first_token_us": next((entry.at_us for entry in first), None),
        "ended_us": next((entry.at_us for entry in tail if isinstance(entry, Ended)), None),
        "tail_us": tuple(entry.at_us for entry in tail if isinstance(entry, Token)),
        "migrations": tuple(
            Migration(request_id, entry.at_us, entry.worker, entry.attempt, entry.resumed_at)
            for entry in tail
            if isinstance(entry, Migrated)
        ),
    }
