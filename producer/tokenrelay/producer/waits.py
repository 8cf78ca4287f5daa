"""Waiting for a stream's next entries; on asyncio together, the readers of many streams on few connections.

A worker's step writes to all of its streams, and would wake a connection for each, one after the other. Who waits for
all of them is woken once, by the step's first entry, and reads that one with the others a round trip later.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING, Any, Final

from redis.exceptions import RedisError

from tokenrelay.producer.sharing import Asker, Group
from tokenrelay.shared.entries import text

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tokenrelay.shared.commands import AsyncPipeline, Batch, Command, Reply

_COUNT: Final = 512
"""Entries in one read, of all its streams."""
_TOGETHER: Final = 32
"""Streams in one read. Redis looks at each of them, whichever has something new."""


@dataclass(frozen=True, slots=True)
class Wait:
    """For entries of a stream behind `after`, an entry's ID, up to `block_ms`.

    Answered with two replies: the new entries as (ID, fields) pairs, none where the time ran out; and as XRANGE gives
    it, the entry `after` as it is now.
    """

    stream: str
    after: str
    block_ms: int

    def batch(self) -> Batch:
        """What one reader sends; `answer` makes its answer of the replies."""
        return _batch([self], self.block_ms)

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
        waits = [waiter.wait for waiter in waiters]
        block_ms: int | None = ceil((min(waiter.until for waiter in waiters) - now()) * 1000)
        if len(waits) > 1:
            # It wakes with the first entry of one stream: looks at all the others' last entries would be for nothing.
            (woken,) = await self._pipeline.run([_xread(waits, 1, block_ms)])
            if isinstance(woken, Exception):
                return _apart(waiters)
            block_ms = None
        news, *lasts = await self._pipeline.run(_batch(waits, block_ms))
        refused = isinstance(news, Exception)
        if refused and len(waiters) > 1:
            return _apart(waiters)
        found = {} if refused else _by_stream(news)
        for waiter, last in zip(waiters, lasts, strict=True):
            entries = news if refused else found.get(waiter.wait.stream, [])
            if entries or isinstance(last, Exception) or now() >= waiter.until:
                waiter.take([entries, last])
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


def _batch(waits: Sequence[Wait], block_ms: int | None) -> Batch:
    """In this order all replies come at once and wake the reader once, and the looks are as late as the read."""
    looks: list[Command] = [("XRANGE", wait.stream, wait.after, wait.after) for wait in waits]
    return [_xread(waits, _COUNT // len(waits), block_ms), *looks]


def _xread(waits: Sequence[Wait], count: int, block_ms: int | None) -> Command:
    """Up to `count` entries of each stream. `block_ms`: None doesn't wait."""
    block: Command = () if block_ms is None else ("BLOCK", max(block_ms, 1))  # 0 would be for ever
    streams, afters = [wait.stream for wait in waits], [wait.after for wait in waits]
    return ("XREAD", "COUNT", count, *block, "STREAMS", *streams, *afters)


def _by_stream(reply: Reply) -> dict[str, list[Any]]:
    """Entries of an XREAD: redis-py gives [[stream, entries], …], {stream: [entries], …} or {stream: entries, …}."""
    found = reply.items() if isinstance(reply, dict) else reply or ()
    return {text(stream): entries[0] if _nested(entries) else entries for stream, entries in found}


def _nested(entries: list[Any]) -> bool:
    return bool(entries) and isinstance(entries[0], list)
