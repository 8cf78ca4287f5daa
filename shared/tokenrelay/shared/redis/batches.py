"""Redis commands as values, and the one way to run a batch of them in a single round trip, sync or asyncio.

Logic that talks to Redis yields batches of `Command`s and is sent the replies, so it is written once and driven twice.
An error takes the place of its command's reply: one refused command doesn't hide its neighbours' replies.
Scripts go out as EVALSHA. A server that doesn't know them (restart, failover) gets them loaded and the batch again:
a repeat is harmless with every script.
"""

from __future__ import annotations

import asyncio
import builtins
import contextlib
import math
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

from redis.exceptions import NoScriptError, RedisError, ResponseError, TimeoutError

from tokenrelay.shared.store.scripts import sha1, source

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

    from redis import Redis
    from redis.asyncio import Redis as AsyncRedis
    from redis.asyncio.connection import AbstractConnection as AsyncConnection
    from redis.connection import AbstractConnection

    from tokenrelay.shared.store.call import ScriptCall

T = TypeVar("T")
Argument = str | bytes | int | float
Command = tuple[Argument, ...]
Reply = Any

_REPLIES_A_TIMER: Final = 8


@dataclass(frozen=True, slots=True)
class Call:
    """A script call: `keys` and `args` as the script's header lists them."""

    script: str
    keys: tuple[str, ...]
    args: tuple[Argument, ...] = ()


Batch = list[Command | Call]


def _packed(item: Command | Call, *, modern: bool) -> bytes:
    """The command as RESP, the bytes that redis-py's own packer makes of it."""
    if isinstance(item, Call):
        item = ("EVALSHA", sha1(item.script, modern=modern), len(item.keys), *item.keys, *item.args)
    try:
        return _pack(item)
    except (UnicodeEncodeError, TypeError):  # a name that isn't UTF-8; what only str() makes text of
        return pack_command(item)


def pack_command(arguments: Command) -> bytes:
    """What hiredis makes of them, where there is none, and of text as `entries.text` reads what isn't UTF-8."""
    parts = [b"*%d\r\n" % len(arguments)]
    for argument in arguments:
        data = argument if isinstance(argument, bytes) else str(argument).encode("utf-8", "surrogateescape")
        parts.append(b"$%d\r\n%b\r\n" % (len(data), data))
    return b"".join(parts)


_pack: Callable[[Command], bytes] = pack_command
with contextlib.suppress(ImportError):  # it comes with the extras of the worker and the gateway
    import hiredis

    _pack = cast("Callable[[Command], bytes]", hiredis.pack_command)


def _reply(connection: AbstractConnection) -> Reply:
    try:
        return connection.read_response()
    except ResponseError as error:
        return error


def _unknown_scripts(batch: Sequence[Command | Call], replies: Sequence[Reply] | RedisError) -> list[str]:
    """The scripts of the batch, where the server said that it lacks one."""
    if isinstance(replies, RedisError) or not any(isinstance(reply, NoScriptError) for reply in replies):
        return []
    return sorted({item.script for item in batch if isinstance(item, Call)})


class _Batches:
    """What both pipelines do besides waiting: which commands go out, and what the replies to them are."""

    redis: Redis | AsyncRedis

    def __init__(self) -> None:
        self._modern = True

    def _commands(self, batch: Batch, *, atomic: bool) -> tuple[bytes, int]:
        """What goes out, and how many replies come."""
        items = [("MULTI",), *batch, ("EXEC",)] if atomic else batch
        return b"".join([_packed(item, modern=self._modern) for item in items]), len(items)

    def _replies(self, batch: Batch, raw: list[Reply], *, atomic: bool) -> list[Reply]:
        """In the shapes that redis-py gives them: INFO as a dict, a stream's entries as pairs, …"""
        if atomic:
            *queued, raw = raw
            if isinstance(raw, Exception):
                raise next((reply for reply in queued if isinstance(reply, Exception)), raw)
        return [self._shaped(item, reply) for item, reply in zip(batch, raw, strict=True)]

    def _shaped(self, item: Command | Call, reply: Reply) -> Reply:
        if isinstance(item, Call) or isinstance(reply, Exception):
            return reply
        if "WITHSCORES" in item:
            return _scored(reply)
        shape = self.redis.response_callbacks.get(cast("str", item[0]))
        return reply if shape is None else shape(reply)


class Pipeline(_Batches):
    """Runs batches on one redis-py client. Safe to share between threads, as the client is."""

    def __init__(self, redis: Redis) -> None:
        super().__init__()
        self.redis: Redis = redis

    def run(self, batch: Batch, *, atomic: bool = False) -> list[Reply]:
        """The replies, errors in place. `atomic` wraps the batch in MULTI/EXEC.

        Raises redis.exceptions.ConnectionError, TimeoutError, AuthenticationError for the whole batch.
        """
        replies = self._send(batch, atomic=atomic)
        if unknown := _unknown_scripts(batch, replies):
            self._load(unknown)
            replies = self._send(batch, atomic=atomic)
        return replies

    def ask(self, call: ScriptCall[T]) -> T:
        """The one call's reply. Raises redis errors, ProtocolError."""
        (reply,) = self.run([call])
        return call.value(reply)

    def _send(self, batch: Batch, *, atomic: bool) -> list[Reply]:
        return self._replies(batch, self._exchange(*self._commands(batch, atomic=atomic)), atomic=atomic)

    def _exchange(self, packed: bytes, count: int) -> list[Reply]:
        """What redis-py's pipeline does, in half of its time, in which the engine can't run: docs/adr/0006."""
        pool = self.redis.connection_pool
        connection = pool.get_connection()
        disconnect = cast("Callable[[], None]", connection.disconnect)

        def once() -> list[Reply]:
            connection.send_packed_command([packed])  # type: ignore[no-untyped-call]
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

    def _load(self, scripts: list[str]) -> None:
        modern = self._modern  # another thread may find out meanwhile that it isn't
        try:
            for script in scripts:
                self.redis.script_load(source(script, modern=modern))
        except ResponseError as error:
            self._modern = _fall_back(error, modern)
            self._load(scripts)


class AsyncPipeline(_Batches):
    """Runs batches on one redis.asyncio client: `Pipeline`, awaited."""

    def __init__(self, redis: AsyncRedis) -> None:
        super().__init__()
        self.redis: AsyncRedis = redis

    async def run(self, batch: Batch, *, atomic: bool = False) -> list[Reply]:
        """As Pipeline.run."""
        (replies,) = await self.run_all([(batch, atomic)])
        if isinstance(replies, RedisError):
            raise replies
        return replies

    async def run_all(self, batches: Sequence[tuple[Batch, bool]]) -> list[list[Reply] | RedisError]:
        """What `run` gives or raises for each batch, which is atomic or not, in one round trip for all.

        Raises what keeps all from being answered, as `run`.
        """
        cancels = _cancels()
        answers = await self._send(batches, cancels)
        lacking = {
            number: unknown
            for number, (batch, _) in enumerate(batches)
            if (unknown := _unknown_scripts(batch, answers[number]))
        }
        if lacking:
            again = await self._loaded_and_sent([batches[number] for number in lacking], lacking.values(), cancels)
            for number, answer in zip(lacking, again, strict=True):
                answers[number] = answer
        return answers

    async def _loaded_and_sent(
        self, batches: Sequence[tuple[Batch, bool]], unknown: Iterable[list[str]], cancels: int
    ) -> Sequence[list[Reply] | RedisError]:
        """What goes wrong with it is the answer of these batches; others have theirs."""
        try:
            await self._load(sorted({script for scripts in unknown for script in scripts}))
            return await self._send(batches, cancels)
        except RedisError as error:
            return [error] * len(batches)

    async def _send(self, batches: Sequence[tuple[Batch, bool]], cancels: int) -> list[list[Reply] | RedisError]:
        commands = [self._commands(batch, atomic=atomic) for batch, atomic in batches]
        packed = b"".join([packed for packed, _ in commands])
        replies = iter(await self._exchange(packed, sum(count for _, count in commands), cancels))
        answers: list[list[Reply] | RedisError] = []
        for (batch, atomic), (_, count) in zip(batches, commands, strict=True):
            try:
                answers.append(self._replies(batch, list(islice(replies, count)), atomic=atomic))
            except RedisError as error:  # a transaction that was refused as a whole
                answers.append(error)
        return answers

    async def _exchange(self, packed: bytes, count: int, cancels: int) -> list[Reply]:
        """`cancels`: how often the task had been cancelled before."""
        pool = self.redis.connection_pool
        connection = await pool.get_connection()  # type: ignore[no-untyped-call]

        async def once() -> list[Reply]:
            await connection.send_packed_command([packed])
            if _cancels() > cancels:
                # redis-py uses asyncio.wait_for, and Python 3.11's drops one that comes as its work is done.
                raise asyncio.CancelledError
            return await _async_replies(connection, count)

        try:
            retry = cast("Callable[..., Awaitable[list[Reply]]]", connection.retry.call_with_retry)
            return await retry(once, lambda _: connection.disconnect())
        except BaseException:
            await connection.disconnect(nowait=True)  # unread replies would be taken for the next batch's
            raise
        finally:
            await asyncio.shield(pool.release(connection))  # a second cancellation mustn't lose it

    async def _load(self, scripts: list[str]) -> None:
        modern = self._modern  # another task may find out meanwhile that it isn't
        try:
            for script in scripts:
                await self.redis.script_load(source(script, modern=modern))
        except ResponseError as error:
            self._modern = _fall_back(error, modern)
            await self._load(scripts)


def _scored(reply: Reply) -> list[tuple[Reply, float]]:
    """Members with their scores, which RESP2 gives in one flat list and RESP3 in pairs. redis-py's own shape depends on
    options that its methods set."""
    if reply and not isinstance(reply[0], list | tuple):
        reply = zip(reply[::2], reply[1::2], strict=True)
    return [(member, float(score)) for member, score in reply]


def _cancels() -> int:
    """How often the running task was cancelled, and not called back."""
    task = asyncio.current_task()
    return 0 if task is None else task.cancelling()


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
