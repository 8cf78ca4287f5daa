"""Logic that talks to Redis without doing I/O: generators that yield what to do and are sent the replies.

A `Steps[T]` is a generator that ends with a T. `drivers` runs it, on threads or on asyncio. An error that keeps a whole
round trip from being answered is thrown into the generator, which may try again; one that it lets through comes out of
the driver as RedisUnusable, with advice.
"""

from __future__ import annotations

from collections.abc import Generator, Hashable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar

from redis.exceptions import AuthenticationError, ConnectionError, RedisError, TimeoutError

from tokenrelay.shared.redis.commands import Batch, Reply
from tokenrelay.shared.wire.entries import text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenrelay.shared.redis.calls import ScriptCall
    from tokenrelay.shared.redis.commands import Command

Result = TypeVar("Result")

LOST: Final = (ConnectionError, TimeoutError)
"""What redis-py raises for a round trip without a reply: the server may have run it or not."""
_RETRY_AFTER_S: Final = 0.05
COUNT: Final = 512
"""New entries in one read, of all its streams."""
_LAST_EVENT: Final = 2**64 - 1
"""The largest second part of an ID that Redis takes."""


@dataclass(frozen=True, slots=True)
class RoundTrip:
    """One idempotent round trip: a driver may send it twice. `atomic` wraps it in MULTI/EXEC."""

    batch: Batch
    atomic: bool = False


@dataclass(frozen=True, slots=True)
class Pause:
    """A pause before a retry."""

    seconds: float


@dataclass(frozen=True, slots=True)
class SingleFlight:
    """Steps that concurrent callers on asyncio share: those that come while steps with the same key run wait for their
    result. On threads each runs its own. The reply is a list with the result alone."""

    key: Hashable
    steps: Steps[Any]


@dataclass(frozen=True, slots=True)
class Wait:
    """A wait for entries of a stream behind `after`, an entry's ID, up to `block_ms`.

    Answered with two replies, lists of (ID, fields) pairs: the new entries, none where the time ran out; and the entry
    `after` as it is now, none where it isn't there.
    """

    stream: str
    after: str
    block_ms: int

    def batch(self) -> Batch:
        """What one reader sends; `answer` makes its answer of the replies.

        In this order both come at once and wake the reader once, and the last entry is read as late as the new ones.
        """
        return [
            read_streams([(self.stream, self.after)], COUNT, self.block_ms),
            ("XRANGE", self.stream, self.after, self.after),
        ]

    def answer(self, replies: Sequence[Reply]) -> list[Reply]:
        news, last = replies
        return [news if isinstance(news, Exception) else by_stream(news).get(self.stream, []), last]


Answered = list[Reply] | RedisError | None
Item = RoundTrip | Wait | Pause | SingleFlight
Steps = Generator[Item, list[Reply], Result]


def ask(batch: Batch) -> Steps[list[Reply]]:
    """The replies to the batch. Raises the first error among them."""
    return raise_on_error((yield RoundTrip(batch)))


def raise_on_error(replies: Sequence[Reply]) -> list[Reply]:
    """The replies. Raises the first error among them."""
    return [check_reply(reply) for reply in replies]


def check_reply(reply: Reply) -> Reply:
    """The reply. Raises it if it is an error."""
    if isinstance(reply, Exception):
        raise reply
    return reply


def is_wrong_type(reply: object) -> bool:
    """Whether it's the error of a key that holds another type."""
    return isinstance(reply, RedisError) and "WRONGTYPE" in str(reply)


def ask_script(call: ScriptCall[Result]) -> Steps[Result]:
    """The reply to the call. Raises the error in its place, ProtocolError."""
    (reply,) = yield RoundTrip([call])
    return call.value(reply)


def repeat(batch: Batch) -> Steps[list[Reply]]:
    """The replies to the batch, errors in place. Retries once after a lost connection."""
    try:
        return (yield RoundTrip(batch))
    except AuthenticationError:
        raise
    except LOST:
        yield Pause(_RETRY_AFTER_S)
        return (yield RoundTrip(batch))


def read_streams(streams: Sequence[tuple[str, str]], count: int, block_ms: int | None = None) -> Command:
    """XREAD up to `count` entries of each stream, behind the ID beside it. `block_ms`: None doesn't wait."""
    block: Command = () if block_ms is None else ("BLOCK", max(block_ms, 1))  # 0 would be for ever
    names, afters = zip(*streams, strict=True)
    return ("XREAD", "COUNT", count, *block, "STREAMS", *names, *afters)


def id_before(entry_id: str) -> str:
    """The ID before that entry's: what an XREAD that starts there gives begins with the entry itself, if it's there."""
    token, event = map(int, entry_id.split("-"))
    if event:
        return f"{token}-{event - 1}"
    return f"{token - 1}-{_LAST_EVENT}" if token else entry_id  # no entry is 0-0


def by_stream(reply: Reply) -> dict[str, list[Any]]:
    """Entries of an XREAD: redis-py gives [[stream, entries], …], {stream: [entries], …} or {stream: entries, …}."""
    found = reply.items() if isinstance(reply, dict) else reply or ()
    return {text(stream): entries[0] if _nested(entries) else entries for stream, entries in found}


def _nested(entries: list[Any]) -> bool:
    return bool(entries) and isinstance(entries[0], list)
