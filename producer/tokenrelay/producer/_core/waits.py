"""Waiting for a stream's next entries; on asyncio together, the readers of many streams on few connections.

A worker's step writes to all of its streams, and would wake a connection for each, one after the other. Who waits for
all of them is woken once, by the step's first entry, and reads that one with the others a round trip later.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from math import ceil
from typing import TYPE_CHECKING, Any, Final

from redis.exceptions import RedisError

from tokenrelay.producer._core.sharing import Asker, Group
from tokenrelay.shared.wire.entries import text

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tokenrelay.shared.redis.batches import AsyncPipeline
    from tokenrelay.shared.redis.commands import Batch, Command, Reply

_COUNT: Final = 512
"""New entries in one read, of all its streams."""
_LAST_EVENT: Final = 2**64 - 1
"""The largest second part of an ID that Redis takes."""
_TOGETHER: Final = 32
"""Streams in one read. Redis looks at each of them, whichever has something new."""


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

        In this order both come at once and wake the reader once, and the look is as late as the read.
        """
        return [
            _xread([(self.stream, self.after)], _COUNT, self.block_ms),
            ("XRANGE", self.stream, self.after, self.after),
        ]

    def answer(self, replies: Sequence[Reply]) -> list[Reply]:
        news, last = replies
        return [news if isinstance(news, Exception) else _by_stream(news).get(self.stream, []), last]


@dataclass(slots=True, eq=False)
class _Waiter(Asker):
    wait: Wait
    until: float
    apart: bool = False
    """Whether it is to be read alone: a read with others failed, and one of them is why."""


class SharedWaits:
    """Reads together for all that begin to wait in one pass of the event loop.

    A step's readers are answered in one pass, so they find together by themselves. Those that it has nothing for go on
    without them: streams that have nothing to do with each other part at their next entry, and are read apart then.
    """

    def __init__(self, pipeline: AsyncPipeline) -> None:
        self._pipeline = pipeline
        self._new: list[_Waiter] = []
        self._left: list[_Waiter] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def answer(self, wait: Wait) -> list[Reply]:
        """The wait's replies, errors in place. Raises as AsyncPipeline.run."""
        loop = asyncio.get_running_loop()
        waiter = _Waiter(loop.create_future(), wait, loop.time() + wait.block_ms / 1000)
        if not self._new:
            # A pass later, behind the tasks that this pass's reads wake: they wait again, and are read for together.
            loop.call_soon(loop.call_soon, self._begin_new)
        self._new.append(waiter)
        return await waiter.answered()

    def _begin_new(self) -> None:
        waiters, self._new = self._new, []
        self._begin(waiters)

    def _go_on(self, waiters: Sequence[_Waiter]) -> None:
        if waiters and not self._left:
            asyncio.get_running_loop().call_soon(self._begin_left)
        self._left += waiters

    def _begin_left(self) -> None:
        waiters, self._left = self._left, []
        self._begin(waiters)

    def _begin(self, waiters: Sequence[_Waiter]) -> None:
        for read in _reads([waiter for waiter in waiters if not waiter.answer.done()]):
            together = list(read.values())
            Group.begun(together, self._run(together), self._tasks)

    async def _run(self, waiters: Sequence[_Waiter]) -> None:
        try:
            self._go_on(await self._served(waiters))
        except Exception as error:  # noqa: BLE001  it's raised where it is waited for
            if len(waiters) == 1 or isinstance(error, RedisError):
                for waiter in waiters:
                    waiter.fail(error)
            else:  # a reply that can't be decoded, a caller's own credential provider
                self._go_on(_apart(waiters))

    async def _served(self, waiters: Sequence[_Waiter]) -> list[_Waiter]:
        """Wait, and answer who has an answer then; the others. Raises redis errors."""
        now = asyncio.get_running_loop().time
        block_ms = ceil((min(waiter.until for waiter in waiters) - now()) * 1000)
        if len(waiters) == 1:
            (waiter,) = waiters
            wait = replace(waiter.wait, block_ms=block_ms)
            waiter.take(wait.answer(await self._pipeline.run(wait.batch())))
            return []
        # It wakes with the first entry of one stream: the others' are read with that stream's, a round trip later.
        behind = [(waiter.wait.stream, waiter.wait.after) for waiter in waiters]
        (woken,) = await self._pipeline.run([_xread(behind, 1, block_ms)])
        if isinstance(woken, Exception):
            return _apart(waiters)
        # From just before the last entries on: it's the look at those too, and one command instead of one for each.
        onward = [(stream, _before(after)) for stream, after in behind]
        (reply,) = await self._pipeline.run([_xread(onward, _COUNT // len(waiters) + 1)])
        if isinstance(reply, Exception):
            return _apart(waiters)
        found = _by_stream(reply)
        for waiter in waiters:
            entries = found.get(waiter.wait.stream, [])
            seen = 1 if entries and text(entries[0][0]) == waiter.wait.after else 0
            if len(entries) > seen or now() >= waiter.until:
                waiter.take([entries[seen:], entries[:seen]])
        return [waiter for waiter in waiters if not waiter.answer.done()]


def _apart(waiters: Sequence[_Waiter]) -> list[_Waiter]:
    for waiter in waiters:
        waiter.apart = True
    return list(waiters)


def _reads(waiters: Iterable[_Waiter]) -> list[dict[str, _Waiter]]:
    """As few as can be, each by stream: a read has a stream only once."""
    reads: list[dict[str, _Waiter]] = []
    open_reads: list[dict[str, _Waiter]] = []
    for waiter in waiters:
        stream = waiter.wait.stream
        fitting = (read for read in open_reads if stream not in read and not waiter.apart)
        read = next(fitting, None)
        if read is None:
            read = {}
            reads.append(read)
            if not waiter.apart:
                open_reads.append(read)
        read[stream] = waiter
        if len(read) == _TOGETHER:
            open_reads.remove(read)
    return reads


def _before(entry_id: str) -> str:
    """The ID before that entry's: what an XREAD that starts there gives begins with the entry itself, if it's there."""
    token, event = map(int, entry_id.split("-"))
    if event:
        return f"{token}-{event - 1}"
    return f"{token - 1}-{_LAST_EVENT}" if token else entry_id  # no entry is 0-0


def _xread(streams: Sequence[tuple[str, str]], count: int, block_ms: int | None = None) -> Command:
    """Up to `count` entries of each stream, behind the ID beside it. `block_ms`: None doesn't wait."""
    block: Command = () if block_ms is None else ("BLOCK", max(block_ms, 1))  # 0 would be for ever
    names, afters = zip(*streams, strict=True)
    return ("XREAD", "COUNT", count, *block, "STREAMS", *names, *afters)


def _by_stream(reply: Reply) -> dict[str, list[Any]]:
    """Entries of an XREAD: redis-py gives [[stream, entries], …], {stream: [entries], …} or {stream: entries, …}."""
    found = reply.items() if isinstance(reply, dict) else reply or ()
    return {text(stream): entries[0] if _nested(entries) else entries for stream, entries in found}


def _nested(entries: list[Any]) -> bool:
    return bool(entries) and isinstance(entries[0], list)
