"""Waiting for many streams together on asyncio: one blocking read, on one connection, for up to 32 readers.

A worker's step writes to all of its streams, and would wake a connection for each, one after the other. A shared read
is woken once, by the step's first entry, and reads the others' entries a round trip later.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from math import ceil
from typing import TYPE_CHECKING, Any, Final

from redis.exceptions import RedisError

from tokenrelay.producer._core.steps import COUNT, by_stream, id_before, read_streams
from tokenrelay.shared.wire.entries import text

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tokenrelay.producer._core.steps import Wait
    from tokenrelay.shared.redis.batches import AsyncPipeline
    from tokenrelay.shared.redis.commands import Reply

_TOGETHER: Final = 32
"""Streams in one read. Redis examines all of them, whichever has a new entry."""
_MANY_READS: Final = 8
_GATHER_S: Final = 0.01
"""How long a few that begin to wait are gathered while there are many reads. Idle readers begin one after the other, as
their round trips take turns: hundreds of them would have a connection for every two."""


@dataclass(slots=True, eq=False)
class _Waiter:
    """One reader that waits, until `until` (the event loop's time)."""

    wait: Wait
    until: float
    replies: asyncio.Future[list[Reply]]
    read: asyncio.Task[None] | None = None
    """What reads for it now."""
    alone: bool = False
    """Whether it is to be read for alone: a shared read failed, and one of its streams is why."""

    def give(self, replies: list[Reply]) -> None:
        if not self.replies.done():
            self.replies.set_result(replies)

    def fail(self, error: BaseException) -> None:
        """Several may be given one error: a future raises it with the traceback that it had when it came."""
        if not self.replies.done():
            self.replies.set_exception(error)


class SharedWaits:
    """Reads together for all that begin to wait in one pass of the event loop.

    A step's readers are answered in one pass, so they find together by themselves. Those that it has nothing for are
    read for again without them: streams of different workers part at their next entry.
    """

    def __init__(self, pipeline: AsyncPipeline) -> None:
        self._pipeline = pipeline
        self._new: list[_Waiter] = []
        self._unanswered: list[_Waiter] = []
        self._reads: dict[asyncio.Task[None], Sequence[_Waiter]] = {}

    async def run(self, wait: Wait) -> list[Reply]:
        """The wait's replies, errors in place. Raises as AsyncPipeline.run."""
        loop = asyncio.get_running_loop()
        waiter = _Waiter(wait, loop.time() + wait.block_ms / 1000, loop.create_future())
        if not self._new:
            # A pass later, behind the tasks that this pass's reads wake: they wait again, and are read for together.
            loop.call_soon(loop.call_soon, self._read_new)
        self._new.append(waiter)
        try:
            return await waiter.replies
        except asyncio.CancelledError:
            if waiter.replies.done() and not waiter.replies.cancelled():
                waiter.replies.exception()  # it came too late, and asyncio needn't log it
            if waiter.read is not None:
                await self._cancel_if_unwanted(waiter.read)
            raise

    async def _cancel_if_unwanted(self, read: asyncio.Task[None]) -> None:
        """End a read that nobody waits for any more before its last reader leaves: that may close its client next."""
        if not read.done() and all(waiter.replies.done() for waiter in self._reads[read]):
            read.cancel()
            await finish(read)

    def _read_new(self) -> None:
        if len(self._reads) >= _MANY_READS and len(self._new) < _TOGETHER:
            asyncio.get_running_loop().call_later(_GATHER_S, self._read_gathered)
        else:
            self._read_gathered()

    def _read_gathered(self) -> None:
        waiters, self._new = self._new, []
        self._start(waiters)

    def _read_again(self, waiters: Sequence[_Waiter]) -> None:
        """Read for them once more, in the next pass together with those of other reads."""
        if waiters and not self._unanswered:
            asyncio.get_running_loop().call_soon(self._read_unanswered)
        self._unanswered += waiters

    def _read_unanswered(self) -> None:
        waiters, self._unanswered = self._unanswered, []
        self._start(waiters)

    def _start(self, waiters: Sequence[_Waiter]) -> None:
        for streams in _grouped([waiter for waiter in waiters if not waiter.replies.done()]):
            together = list(streams.values())
            read = asyncio.create_task(self._read(together))
            self._reads[read] = together
            for waiter in together:
                waiter.read = read
            read.add_done_callback(self._forget)

    def _forget(self, read: asyncio.Task[None]) -> None:
        waiters = self._reads.pop(read)
        if read.cancelled():  # from without, as where an application that stops cancels all of its tasks
            for waiter in waiters:
                waiter.replies.cancel()

    async def _read(self, waiters: Sequence[_Waiter]) -> None:
        try:
            self._read_again(await self._answer(waiters))
        except Exception as error:  # noqa: BLE001  it's raised where it is waited for
            if len(waiters) == 1 or isinstance(error, RedisError):
                for waiter in waiters:
                    waiter.fail(error)
            else:  # a reply that can't be decoded, a caller's own credential provider
                self._read_again(_separated(waiters))

    async def _answer(self, waiters: Sequence[_Waiter]) -> list[_Waiter]:
        """Wait, give replies to those that have some then, and return the others. Raises redis errors."""
        now = asyncio.get_running_loop().time
        block_ms = ceil((min(waiter.until for waiter in waiters) - now()) * 1000)
        if len(waiters) == 1:
            (waiter,) = waiters
            wait = replace(waiter.wait, block_ms=block_ms)
            waiter.give(wait.answer(await self._pipeline.run(wait.batch())))
            return []
        # It wakes with the first entry of one stream: the others' are read with that stream's, a round trip later.
        behind = [(waiter.wait.stream, waiter.wait.after) for waiter in waiters]
        (woken,) = await self._pipeline.run([read_streams(behind, 1, block_ms)])
        if isinstance(woken, Exception):
            return _separated(waiters)
        # From just before the last entries on: one command shows those as they are now and what follows them.
        onward = [(stream, id_before(after)) for stream, after in behind]
        (reply,) = await self._pipeline.run([read_streams(onward, COUNT // len(waiters) + 1)])
        if isinstance(reply, Exception):
            return _separated(waiters)
        found = by_stream(reply)
        for waiter in waiters:
            entries = found.get(waiter.wait.stream, [])
            seen = 1 if entries and text(entries[0][0]) == waiter.wait.after else 0
            if len(entries) > seen or now() >= waiter.until - _GATHER_S:
                waiter.give([entries[seen:], entries[:seen]])
        return [waiter for waiter in waiters if not waiter.replies.done()]


def _separated(waiters: Sequence[_Waiter]) -> list[_Waiter]:
    for waiter in waiters:
        waiter.alone = True
    return list(waiters)


def _grouped(waiters: Iterable[_Waiter]) -> list[dict[str, _Waiter]]:
    """As few reads as can be, each by stream: a read has a stream only once."""
    reads: list[dict[str, _Waiter]] = []
    with_room: list[dict[str, _Waiter]] = []
    for waiter in waiters:
        stream = waiter.wait.stream
        fitting = (read for read in with_room if stream not in read and not waiter.alone)
        read = next(fitting, None)
        if read is None:
            read = {}
            reads.append(read)
            if not waiter.alone:
                with_room.append(read)
        read[stream] = waiter
        if len(read) == _TOGETHER:
            with_room.remove(read)
    return reads


async def finish(task: asyncio.Future[Any]) -> None:
    """Wait for the task however often the waiting one is cancelled (anyio's scopes cancel every await in them)."""
    cancelled = False
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            cancelled = True
    if cancelled:
        raise asyncio.CancelledError
    task.result()
