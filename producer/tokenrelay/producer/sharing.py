"""What one task fetches for several on asyncio: who asked, who has gone, and the round trips that are made as one."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from redis.exceptions import RedisError

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterable, Sequence

    from tokenrelay.shared.commands import AsyncPipeline, Batch, Reply

_TOGETHER: Final = 128
"""Commands of one round trip, if it's made for several. Who sends more goes alone, and keeps nobody waiting."""


@dataclass(slots=True, eq=False)
class Asker:
    """Waits for replies, errors in place; or for the error for which there are none."""

    answer: asyncio.Future[list[Reply] | RedisError]
    group: Group | None = field(default=None, kw_only=True)

    def take(self, replies: list[Reply] | RedisError) -> None:
        if not self.answer.done():
            self.answer.set_result(replies)

    def fail(self, error: Exception) -> None:
        if not self.answer.done():
            self.answer.set_exception(error)

    async def answered(self) -> list[Reply] | RedisError:
        """Raises what isn't Redis's. Who is cancelled here has gone: the last of a group ends what is done for it."""
        try:
            return await self.answer
        finally:
            if (self.answer.cancel() or self.answer.cancelled()) and self.group is not None:
                self.group.end_if_left()


@dataclass(slots=True, eq=False)
class Group:
    """Those for whom one task is under way."""

    askers: Sequence[Asker]
    task: asyncio.Task[None]

    @classmethod
    def begun(cls, askers: Sequence[Asker], work: Coroutine[None, None, None], tasks: set[asyncio.Task[None]]) -> None:
        """`tasks` holds the task while it runs."""
        group = cls(askers, asyncio.create_task(work))
        tasks.add(group.task)
        group.task.add_done_callback(tasks.discard)
        for asker in askers:
            asker.group = group

    def end_if_left(self) -> None:
        if all(asker.answer.done() for asker in self.askers):
            self.task.cancel()


@dataclass(slots=True, eq=False)
class _Sender(Asker):
    batch: Batch
    atomic: bool


class SharedRounds:
    """Makes the round trips that begin in one pass of the event loop as one, on one connection."""

    def __init__(self, pipeline: AsyncPipeline) -> None:
        self._pipeline = pipeline
        self._new: list[_Sender] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def answer(self, batch: Batch, *, atomic: bool = False) -> list[Reply] | RedisError:
        """The batch's replies, errors in place; or the error for which there are none. Raises what else went wrong."""
        sender = _Sender(asyncio.get_running_loop().create_future(), batch, atomic)
        self._new.append(sender)
        if self._new[0] is not sender or not await self._is_alone(sender):
            return await sender.answered()
        try:
            return await self._pipeline.run(batch, atomic=atomic)
        except RedisError as error:
            return error

    async def _is_alone(self, first: _Sender) -> bool:
        """Let a pass of the event loop go by. Who came in it is begun for, and `first` with them."""
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            first.answer.cancel()
            raise
        finally:
            senders, self._new = self._new, []
            if len(senders) > 1:
                self._begin(senders)
        return len(senders) == 1

    def _begin(self, senders: Iterable[_Sender]) -> None:
        for together in _groups(sender for sender in senders if not sender.answer.done()):
            Group.begun(together, self._run(together), self._tasks)

    async def _run(self, senders: Sequence[_Sender]) -> None:
        try:
            answers = await self._pipeline.run_all([(sender.batch, sender.atomic) for sender in senders])
        except RedisError as error:
            for sender in senders:
                sender.take(error)
        except Exception as error:  # noqa: BLE001  a reply that can't be decoded, …: raised where it's waited for
            self._fail(senders, error)
        else:
            for sender, answer in zip(senders, answers, strict=True):
                sender.take(answer)

    def _fail(self, senders: Sequence[_Sender], error: Exception) -> None:
        if len(senders) == 1:
            senders[0].fail(error)
            return
        for sender in senders:  # one of them is why: each by itself
            self._begin([sender])


def _groups(senders: Iterable[_Sender]) -> list[list[_Sender]]:
    """As few as can be, in the senders' order."""
    groups: list[list[_Sender]] = []
    room = 0
    for sender in senders:
        size = len(sender.batch)
        if size > room:
            groups.append([])
            room = _TOGETHER
        groups[-1].append(sender)
        room -= size
    return groups
