"""The one way to run a batch of commands: in a single round trip, on the server of its plane, sync or asyncio.

Logic that talks to Redis yields batches and is sent the replies, so it is written once and driven twice. An error takes
the place of its command's reply: one refused command doesn't hide its neighbours' replies. A batch that mixes the
planes is refused, also where both are on one server.
Scripts go out as EVALSHA. A server that doesn't know them (restart, failover) gets them loaded and the batch again:
a repeat is harmless with every script.
"""

from __future__ import annotations

import asyncio
import builtins
import math
from typing import TYPE_CHECKING, Final, Generic, TypeVar, cast

from redis import Redis
from redis.asyncio import Redis as AsyncRedis
from redis.exceptions import NoScriptError, ResponseError, TimeoutError

from tokenrelay.shared.redis.commands import Call, batch_plane
from tokenrelay.shared.redis.packing import packed, shaped
from tokenrelay.shared.redis.servers import Client, Servers, servers
from tokenrelay.shared.wire.keys import Plane

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from redis.asyncio.connection import AbstractConnection as AsyncConnection
    from redis.connection import AbstractConnection

    from tokenrelay.shared.redis.calls import ScriptCall
    from tokenrelay.shared.redis.commands import Batch, Item, Reply, Script

T = TypeVar("T")
_REPLIES_A_TIMER: Final = 8


def _reply(connection: AbstractConnection) -> Reply:
    try:
        return connection.read_response()
    except ResponseError as error:
        return error


def _unknown_scripts(batch: Sequence[Item], replies: Sequence[Reply]) -> list[Script]:
    """The scripts of the batch, where the server said that it lacks one."""
    if not any(isinstance(reply, NoScriptError) for reply in replies):
        return []
    scripts = [item.script for item in batch if isinstance(item, Call)]
    return list({script.name: script for script in scripts}.values())


class _Batches(Generic[Client]):
    """What both pipelines do besides waiting: which commands go out, and what the replies to them are."""

    def __init__(self, queue: Client, token: Client | None = None) -> None:
        """`token`: the client of the token plane's server; None where it's the queue plane's."""
        self.servers: Servers[Client] = servers(queue, token)
        self._modern = dict.fromkeys(Plane, True)
        """Whether a plane's server takes a script's flags; found out as the first script is loaded."""

    def _commands(self, batch: Batch, plane: Plane, *, atomic: bool) -> tuple[bytes, int]:
        """What goes out, and how many replies come."""
        items: Sequence[Item] = [("MULTI",), *batch, ("EXEC",)] if atomic else batch
        modern = self._modern[plane]
        return b"".join([packed(item, modern=modern) for item in items]), len(items)

    def _replies(self, batch: Batch, plane: Plane, raw: list[Reply], *, atomic: bool) -> list[Reply]:
        """In the shapes that redis-py gives them."""
        if atomic:
            *queued, raw = raw
            if isinstance(raw, Exception):
                raise next((reply for reply in queued if isinstance(reply, Exception)), raw)
        callbacks = self.servers.client(plane).response_callbacks
        return [shaped(item, reply, callbacks) for item, reply in zip(batch, raw, strict=True)]


class Pipeline(_Batches[Redis]):
    """Runs batches on the server of their plane. Safe to share between threads, as the clients are."""

    def run(self, batch: Batch, *, atomic: bool = False) -> list[Reply]:
        """The replies, errors in place. `atomic` wraps the batch in MULTI/EXEC.

        Raises MixedPlanesError; redis.exceptions.ConnectionError, TimeoutError, AuthenticationError for all of it.
        """
        if not batch:
            return []
        plane = batch_plane(batch)
        replies = self._send(batch, plane, atomic=atomic)
        if unknown := _unknown_scripts(batch, replies):
            self._load(unknown, plane)
            replies = self._send(batch, plane, atomic=atomic)
        return replies

    def ask(self, call: ScriptCall[T]) -> T:
        """The one call's reply. Raises redis errors, ProtocolError."""
        (reply,) = self.run([call])
        return call.value(reply)

    def _send(self, batch: Batch, plane: Plane, *, atomic: bool) -> list[Reply]:
        commands, count = self._commands(batch, plane, atomic=atomic)
        raw = self._exchange(self.servers.client(plane), commands, count)
        return self._replies(batch, plane, raw, atomic=atomic)

    @staticmethod
    def _exchange(client: Redis, commands: bytes, count: int) -> list[Reply]:
        """What redis-py's pipeline does, in half of its time, in which the engine can't run: docs/adr/0006."""
        pool = client.connection_pool
        connection = pool.get_connection()
        disconnect = cast("Callable[[], None]", connection.disconnect)

        def once() -> list[Reply]:
            connection.send_packed_command([commands])  # type: ignore[no-untyped-call]
            return [_reply(connection) for _ in range(count)]

        try:
            # A connection that was cut connects again by itself when it's next used.
            retry = cast("Callable[..., list[Reply]]", connection.retry.call_with_retry)
            return retry(once, lambda _: disconnect())
        except BaseException:
            disconnect()  # unread replies would be taken for the next batch's
            raise
        finally:
            pool.release(connection)

    def _load(self, scripts: Sequence[Script], plane: Plane) -> None:
        modern = self._modern[plane]  # another thread may find out meanwhile that it isn't
        try:
            for script in scripts:
                self.servers.client(plane).script_load(script.source(modern=modern))
        except ResponseError as error:
            self._modern[plane] = _fall_back(error, modern)
            self._load(scripts, plane)


class AsyncPipeline(_Batches[AsyncRedis]):
    """Runs batches on the redis.asyncio client of their plane: `Pipeline`, awaited."""

    async def run(self, batch: Batch, *, atomic: bool = False) -> list[Reply]:
        """As Pipeline.run."""
        if not batch:
            return []
        cancels = cancel_requests()
        plane = batch_plane(batch)
        replies = await self._send(batch, plane, cancels, atomic=atomic)
        if unknown := _unknown_scripts(batch, replies):
            await self._load(unknown, plane)
            replies = await self._send(batch, plane, cancels, atomic=atomic)
        return replies

    async def _send(self, batch: Batch, plane: Plane, cancels: int, *, atomic: bool) -> list[Reply]:
        commands, count = self._commands(batch, plane, atomic=atomic)
        raw = await self._exchange(self.servers.client(plane), commands, count, cancels)
        return self._replies(batch, plane, raw, atomic=atomic)

    @staticmethod
    async def _exchange(client: AsyncRedis, commands: bytes, count: int, cancels: int) -> list[Reply]:
        """`cancels`: the task's cancellation requests before."""
        pool = client.connection_pool
        connection = await pool.get_connection()  # type: ignore[no-untyped-call]

        async def once() -> list[Reply]:
            raise_if_cancelled(cancels)  # while the attempt before connected
            await connection.send_packed_command([commands])
            raise_if_cancelled(cancels)
            return await _async_replies(connection, count)

        try:
            retry = cast("Callable[..., Awaitable[list[Reply]]]", connection.retry.call_with_retry)
            return await retry(once, lambda _: connection.disconnect())
        except BaseException:
            await connection.disconnect(nowait=True)  # unread replies would be taken for the next batch's
            raise
        finally:
            await asyncio.shield(pool.release(connection))  # a second cancellation mustn't lose it

    async def _load(self, scripts: Sequence[Script], plane: Plane) -> None:
        modern = self._modern[plane]  # another task may find out meanwhile that it isn't
        try:
            for script in scripts:
                await self.servers.client(plane).script_load(script.source(modern=modern))
        except ResponseError as error:
            self._modern[plane] = _fall_back(error, modern)
            await self._load(scripts, plane)


def cancel_requests() -> int:
    """How many cancellations of the running task are pending."""
    task = asyncio.current_task()
    return 0 if task is None else task.cancelling()


def raise_if_cancelled(before: int) -> None:
    """Raises the CancelledError that came since `before` and was lost: redis-py sends and connects by asyncio.wait_for,
    and Python 3.11's drops one that comes as its work is done."""
    if cancel_requests() > before:
        raise asyncio.CancelledError


async def _async_replies(connection: AsyncConnection, count: int) -> list[Reply]:
    """So many replies, the next few of them within the socket's timeout each time.

    A timer for every reply, which is redis-py's way, takes longer than to parse one. But without it redis-py makes a
    reply of None of a socket that timed out, and of every read behind that: so the last one is read its way.
    """
    timeout_s: float | None = connection.socket_timeout
    replies: list[Reply] = []
    try:
        while (left := count - 1 - len(replies)) > 0:
            async with asyncio.timeout(timeout_s):
                for _ in range(min(left, _REPLIES_A_TIMER)):
                    replies.append(await _async_reply(connection, math.inf))
    except builtins.TimeoutError:
        raise TimeoutError(f"Redis didn't reply within {timeout_s} s") from None
    return [*replies, await _async_reply(connection, None)]


async def _async_reply(connection: AsyncConnection, timeout_s: float | None) -> Reply:
    """`timeout_s`: None is the socket's own."""
    try:
        return await connection.read_response(timeout=timeout_s)
    except ResponseError as error:
        return error


def _fall_back(error: ResponseError, modern: bool) -> bool:
    """False for Redis 6.2, which takes the flags line for a syntax error. Raises anything else."""
    if modern and "compiling script" in str(error).lower():
        return False
    raise error
