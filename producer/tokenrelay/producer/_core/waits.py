"""Waiting for a stream's next entries: a step of its own, beside a round trip. `shared_waits` runs many together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from tokenrelay.shared.wire.entries import text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenrelay.shared.redis.commands import Batch, Command, Reply

COUNT: Final = 512
"""New entries in one read, of all its streams."""
_LAST_EVENT: Final = 2**64 - 1
"""The largest second part of an ID that Redis takes."""


@dataclass(frozen=True, slots=True)
class Wait:
    """For entries of a stream behind `after`, an entry's ID, up to `block_ms`.

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
