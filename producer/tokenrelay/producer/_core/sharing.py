"""What one task does for several on asyncio: who waits for it, who has gone, and what is shared."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from redis.exceptions import RedisError

from tokenrelay.shared.redis.commands import batch_plane
from tokenrelay.shared.wire.keys import Plane

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Sequence

    from tokenrelay.shared.redis.batches import AsyncPipeline
    from tokenrelay.shared.redis.commands import Batch, Reply

_TOGETHER: Final = 128
"""Commands of one round trip, if it's made for several. Who sends more goes alone, and keeps nobody waiting."""


@dataclass(slots=True, eq=False)
class Asker:
    """Waits for replies that a group's task fetches."""

    answer: asyncio.Future[list[Reply]]
    group: Group | None = field(default=None, kw_only=True)

    def take(self, replies: list[Reply]) -> None:
        if not self.answer.done():
            self.answer.set_result(replies)

    def fail(self, error: BaseException) -> None:
        """Several may be given one error: a future raises it with the traceback that it had when it came."""
        if not self.answer.done():
            self.answer.set_exception(error)

    async def answered(self) -> list[Reply]:
        """Raises what the asker is failed with. The last of a group to be cancelled here ends its task first."""
        try:
            return await self.answer
        except asyncio.CancelledError:
            if not self.answer.cancel() and not self.answer.cancelled():
                self.answer.exception()  # it came too late, and asyncio needn't log it
            if self.group is not None:
                await self.group.end_if_left()
            raise
        finally:
            self.group = None


@dataclass(slots=True, eq=False)
class Group:
    """Those for whom one task is under way."""

    askers: Sequence[Asker]
    task: asyncio.Task[None]

    @classmethod
    def begun(cls, askers: Sequence[Asker], work: Coroutine[None, None, None], tasks: set[asyncio.Task[None]]) -> Group:
        """`tasks` holds the task while it runs."""
        group = cls(askers, asyncio.create_task(work))
        tasks.add(group.task)
        group.task.add_done_callback(tasks.discard)
        group.task.add_done_callback(group._ended)
        for asker in askers:
            asker.group = group
        return group

    @property
    def left(self) -> bool:
        """Whether nobody waits any more."""
        return all(asker.answer.done() for asker in self.askers)

    async def end_if_left(self) -> None:
        if self.left and not self.task.done():
            self.task.cancel()
            await completed(self.task)

    def _ended(self, task: asyncio.Task[None]) -> None:
        """Nobody waits for a task that was ended from without."""
        for asker in self.askers if task.cancelled() else ():
            asker.answer.cancel()


class SharedCall:
    """A call made once for all who ask while it's under way."""

    def __init__(self, call: Callable[[], Coroutine[None, None, None]]) -> None:
        self._call = call
        self._askers: list[Asker] = []
        self._group: Group | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def done(self) -> None:
        """Return once the call has. Raises what it raises."""
        asker = Asker(asyncio.get_running_loop().create_future())
        if self._group is None or self._group.left:
            self._askers = [asker]
            self._group = Group.begun(self._askers, self._run(self._askers), self._tasks)
        else:
            self._askers.append(asker)
            asker.group = self._group
        await asker.answered()

    async def _run(self, askers: Sequence[Asker]) -> None:
        try:
            await self._call()
        except Exception as error:  # noqa: BLE001  it's raised where it is waited for
            for asker in askers:
                asker.fail(error)
        else:
            for asker in askers:
                asker.take([])


@dataclass(slots=True, eq=False)
class _Sender(Asker):
    batch: Batch
    atomic: bool
    plane: Plane


class SharedRounds:
    """Makes the round trips of one plane that begin in one pass of the event loop as one, on one connection.

    Batches must bear a repeat, as where a connection is cut: they're sent again where a neighbour's reply can't be
    decoded.
    """

    def __init__(self, pipeline: AsyncPipeline) -> None:
        self._pipeline = pipeline
        self._new: list[_Sender] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def answer(self, batch: Batch, *, atomic: bool = False) -> list[Reply]:
        """As AsyncPipeline.run, of a batch that isn't empty."""
        sender = _Sender(asyncio.get_running_loop().create_future(), batch, atomic, batch_plane(batch))
        self._new.append(sender)
        if self._new[0] is sender and await self._is_alone(sender):
            return await self._pipeline.run(batch, atomic=atomic)
        return await sender.answered()

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
        waiting = [sender for sender in senders if not sender.answer.done()]
        for plane in Plane:
            for together in _groups(sender for sender in waiting if sender.plane is plane):
                Group.begun(together, self._run(together), self._tasks)

    async def _run(self, senders: Sequence[_Sender]) -> None:
        try:
            answers = await self._pipeline.run_all([(sender.batch, sender.atomic) for sender in senders])
        except Exception as error:  # noqa: BLE001  it's raised where it is waited for
            if len(senders) == 1 or isinstance(error, RedisError):
                for sender in senders:
                    sender.fail(error)
            else:  # a reply that can't be decoded, …: one of them is why
                for sender in senders:
                    self._begin([sender])
            return
        for sender, answer in zip(senders, answers, strict=True):
            if isinstance(answer, RedisError):
                sender.fail(answer)
            else:
                sender.take(answer)


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


async def completed(task: asyncio.Future[Any]) -> None:
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
