"""What many requests are at one moment, from their hashes and the ends of their streams.

A stream is read at its two ends alone, so that an answer of any length costs the same. All times are Redis's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final, Literal

from redis.exceptions import NoPermissionError

from tokenrelay.producer._core.rounds import Round
from tokenrelay.shared.errors import ProtocolError
from tokenrelay.shared.store.jobs import holder_look
from tokenrelay.shared.store.record import Field, RequestRecord, look
from tokenrelay.shared.wire import keys
from tokenrelay.shared.wire.entries import AnyEntry, Ended, Migrated, Queued, Started, State, Token, parse_entry, text

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tokenrelay.producer._core.rounds import Steps
    from tokenrelay.shared.redis.batches import Batch, Reply

TAIL: Final = 64
"""Entries looked at from each stream's end."""
_PER_ROUND: Final = 40
"""Requests asked for in one round trip: 2 ms of Redis's time, in which no worker's tokens get in."""
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
class Found:
    """A request's ID, and where RQ has it. `score` orders those of one place: the larger, the newer."""

    request_id: str
    queue: str
    place: Place
    score: float = 0.0


@dataclass(frozen=True, slots=True)
class Migration:
    """One baton pass."""

    request_id: str
    at_us: int
    worker: str
    attempt: int
    resumed_at: int


@dataclass(frozen=True, slots=True)
class Sighting:
    """One request. Times are microseconds since 1970 by Redis's clock, None where it hasn't come to that."""

    request_id: str
    queue: str
    state: State
    tokens: int
    attempts: int
    owned: bool
    """Whether a worker may write it; `lease_us` is until when."""
    lease_us: int
    deadline_us: int
    worker: str | None
    queued_us: int
    started_us: int | None
    first_token_us: int | None
    ended_us: int | None
    tail_us: tuple[int, ...]
    """When the last tokens were written, oldest first: at most TAIL."""
    migrations: tuple[Migration, ...]
    """Those among the stream's last entries."""

    @property
    def running(self) -> bool:
        """Whether a worker has it; else it waits, perhaps for a second time, or has ended."""
        return self.owned and not self.state.terminal

    @property
    def queue_wait_ms(self) -> float | None:
        return None if self.started_us is None else (self.started_us - self.queued_us) / 1000

    @property
    def ttft_ms(self) -> float | None:
        return None if self.first_token_us is None else (self.first_token_us - self.queued_us) / 1000

    @property
    def gaps_ms(self) -> tuple[float, ...]:
        """Between the tokens of the tail."""
        return tuple((after - before) / 1000 for before, after in pairwise(self.tail_us))

    def age_s(self, now_us: int) -> float:
        """From submit to its end, or to now."""
        return max(0.0, ((self.ended_us or now_us) - self.queued_us) / 1e6)


def queued(queue: str, first: int, last: int) -> Steps[list[Found]]:
    """Numbers `first` to `last` of those that wait in a queue, from its newest end."""
    (found,) = yield Round([("LRANGE", keys.rq_queue(queue), -1 - last, -1 - first)])
    if isinstance(found, Exception):
        raise found
    return [Found(text(item), queue, "queued") for item in reversed(found)]


def registered(places: Sequence[tuple[str, Place]], first: int, last: int, *, newest: bool) -> Steps[list[Found]]:
    """Numbers `first` to `last` of each queue's claimed set or registry, from its newest or oldest end, in order."""
    end = ("REV", "WITHSCORES") if newest else ("WITHSCORES",)
    batch: Batch = [("ZRANGE", _key(queue, place), first, last, *end) for queue, place in places]
    replies = (yield Round(batch)) if batch else []
    found = []
    for (queue, place), reply in zip(places, replies, strict=True):
        if isinstance(reply, Exception):
            raise reply
        found += [Found(text(member), queue, place, score) for member, score in reply]
    return sorted(found, key=lambda one: one.score, reverse=newest)


def sighted(found: Iterable[Found], *, tail: int = TAIL) -> Steps[list[Sighting]]:
    """The requests, without those that are gone or malformed. Raises NoPermissionError where they may not be read."""
    ids = list({one.request_id: one for one in found if keys.is_request_id(one.request_id)})
    seen: list[Sighting] = []
    for first in range(0, len(ids), _PER_ROUND):
        seen += yield from _some(ids[first : first + _PER_ROUND], tail)
    return seen


def _some(ids: Sequence[str], tail: int) -> Steps[list[Sighting]]:
    batch: Batch = []
    for request_id in ids:
        stream = keys.stream(request_id)
        batch += [
            look(request_id, _FIELDS),
            ("XRANGE", stream, "0-1", "0-2"),
            ("XRANGE", stream, "1-0", "1-0"),
            ("XREVRANGE", stream, "+", "-", "COUNT", tail),
        ]
    replies = yield Round(batch)
    holders = yield Round([holder_look(request_id) for request_id in ids])
    for reply in (*replies, *holders):
        if isinstance(reply, NoPermissionError):
            raise reply
    seen = [
        _sighting(request_id, holder, replies[4 * number : 4 * number + 4])
        for number, (request_id, holder) in enumerate(zip(ids, holders, strict=True))
    ]
    return [sighting for sighting in seen if sighting is not None]


def _key(queue: str, place: Place) -> str:
    return keys.claimed(queue) if place == "running" else keys.rq_registry(place, queue)


def _sighting(request_id: str, holder: Reply, replies: Sequence[Reply]) -> Sighting | None:
    held, *ranges = replies
    if any(isinstance(reply, Exception) for reply in (holder, *replies)):
        return None
    record = RequestRecord(_FIELDS, held)
    try:
        head, first, tail = ([parse_entry(*item) for item in found] for found in ranges)
        return Sighting(
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
    """The times of its milestones. Raises StopIteration for a stream whose beginning is gone."""
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
