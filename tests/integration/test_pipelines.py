"""One batch, one round trip: the bytes that go out, the replies that come back, and what an error leaves behind."""

from __future__ import annotations

import asyncio
import errno
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.connection import PythonRespSerializer
from redis.exceptions import ConnectionError, ResponseError, TimeoutError

from tests.streams import REQUEST_ID
from tests.token_plane import decoded
from tokenrelay.shared.redis.batches import AsyncPipeline, Pipeline
from tokenrelay.shared.redis.commands import Batch, Call, Command, On, info, ping, server_time
from tokenrelay.shared.redis.connections import connect, connect_async
from tokenrelay.shared.redis.packing import pack_command, packed
from tokenrelay.shared.store.scripts import script
from tokenrelay.shared.wire import keys
from tokenrelay.shared.wire.entries import State
from tokenrelay.shared.wire.keys import Plane

if TYPE_CHECKING:
    from collections.abc import Iterator

    from redis import Redis

    from tests.redis_servers import RedisServer

PAIR = (keys.request(REQUEST_ID), keys.stream(REQUEST_ID))
CREATE = Call(script("create"), PAIR, ("body", 60_000, 60_000, "", "", "tokenrelay.weather.default", "{}"))


class AwaitedPipeline:
    """`AsyncPipeline`, called as a `Pipeline` is."""

    def __init__(self, url: str) -> None:
        self.redis = connect_async(url)
        self._pipeline = AsyncPipeline(self.redis)
        self._runner = asyncio.Runner()

    def run(self, batch: Batch, *, atomic: bool = False) -> list[Any]:
        return self._runner.run(self._pipeline.run(batch, atomic=atomic))

    def close(self) -> None:
        self._runner.run(self.redis.aclose())
        self._runner.close()


@pytest.fixture(params=["sync", "asyncio"])
def either(request: pytest.FixtureRequest, redis_server: RedisServer) -> Iterator[Pipeline | AwaitedPipeline]:
    if request.param == "sync":
        with connect(redis_server.url) as client:
            yield Pipeline(client)
    else:
        pipeline = AwaitedPipeline(redis_server.url)
        yield pipeline
        pipeline.close()


READS: Batch = [
    ("ZRANGE", "scores", 0, -1, "WITHSCORES"),
    ("ZRANGE", "scores", 0, -1, "REV", "WITHSCORES"),
    ("ZRANGE", "scores", 0, -1),
    ("ZRANGE", "nothing", 0, -1, "WITHSCORES"),
    ("ZSCORE", "scores", "a"),
    ("XRANGE", "entries", "-", "+"),
    ("XREVRANGE", "entries", "+", "-", "COUNT", 1),
    ("XLEN", "entries"),
    ("HMGET", "fields", "a", "nothing"),
    ("HGETALL", "fields"),
    ("HGETALL", "nothing"),
    ("SMEMBERS", "members"),
    ("LRANGE", "list", 0, -1),
    ("LPOS", "list", "a"),
    ("LPOS", "list", "nothing"),
    ("GET", "nothing"),
    ("PTTL", "scores"),
    ("EXISTS", "scores"),
]


def test_replies_have_one_shape_in_both_protocols(redis_server: RedisServer, redis: Redis) -> None:
    """redis-py 6 and 7 speak RESP2 unless told otherwise, redis-py 8 RESP3; a URL may say either."""
    redis.zadd("scores", {"a": 1, "b": 2.5})
    redis.xadd("entries", {"a": 1}, "1-0")
    redis.xadd("entries", {"b": 2}, "2-0")
    redis.hset("fields", mapping={"a": 1})
    redis.sadd("members", "a", "b")
    redis.rpush("list", "a", "b")
    shapes = []
    for connecting, protocol in [(Pipeline, 2), (Pipeline, 3), (AwaitedPipeline, 2), (AwaitedPipeline, 3)]:
        url = f"{redis_server.url}?protocol={protocol}"
        pipeline = AwaitedPipeline(url) if connecting is AwaitedPipeline else Pipeline(connect(url))
        *replies, told, time = pipeline.run([*READS, info(Plane.QUEUE), server_time(Plane.QUEUE)])
        assert told["redis_version"]
        assert all(isinstance(part, int) for part in time)
        shapes.append(replies)
        pipeline.close() if isinstance(pipeline, AwaitedPipeline) else pipeline.servers.queue.close()
    redis.flushall()
    assert shapes[0][0] == [(b"a", 1.0), (b"b", 2.5)]
    assert shapes[1:] == shapes[:1] * 3


@given(
    st.lists(
        st.one_of(
            st.text(st.characters(exclude_categories=["Cs"])),
            st.binary(),
            st.integers(),
            st.floats(),
            st.sampled_from(State),
        ),
        min_size=1,
    )
)
def test_the_bytes_are_those_of_redis_py(arguments: list[Any]) -> None:
    command: Command = ("SET", *arguments)
    encode = connect("redis://localhost:1").connection_pool.get_encoder().encode
    theirs = b"".join(PythonRespSerializer(6000, encode).pack(*command))  # type: ignore[no-untyped-call]
    assert packed(command, modern=True) == pack_command(command) == theirs
    call = Call(script("append"), PAIR, tuple(arguments))
    evalsha = ("EVALSHA", script("append").sha1(modern=True), 2, *PAIR, *arguments)
    assert packed(call, modern=True) == b"".join(PythonRespSerializer(6000, encode).pack(*evalsha))  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("atomic", [False, True])
def test_replies_have_the_shape_that_redis_py_gives_them(
    redis: Redis, either: Pipeline | AwaitedPipeline, atomic: bool
) -> None:
    batch: Batch = [CREATE, ("HGETALL", PAIR[0]), ("XRANGE", PAIR[1], "-", "+"), server_time(Plane.TOKEN)]
    batch.append(("XREAD", "STREAMS", PAIR[1], "0"))
    either.run([CREATE])
    replies = either.run(batch, atomic=atomic)
    with redis.pipeline() as theirs:
        for item in batch[1:]:
            assert not isinstance(item, Call)
            command = item.command if isinstance(item, On) else item
            theirs.execute_command(*command)  # type: ignore[no-untyped-call]
        fields, entries, time, read = theirs.execute()
    assert decoded(replies[0]) == ["ATTACHED", "queued"]
    assert replies[1:3] == [fields, entries]
    assert isinstance(replies[3], tuple)
    assert isinstance(time, tuple)
    assert replies[4] == read


@pytest.mark.parametrize("atomic", [False, True])
def test_an_error_stands_in_its_replys_place(either: Pipeline | AwaitedPipeline, atomic: bool) -> None:
    either.run([CREATE])
    replies = either.run([ping(Plane.TOKEN), ("LPUSH", PAIR[1], "x"), ping(Plane.TOKEN)], atomic=atomic)
    assert isinstance(replies[1], ResponseError)
    assert [replies[0], replies[2]] == [True, True]


def test_a_transaction_that_was_refused_raises_why(either: Pipeline | AwaitedPipeline) -> None:
    with pytest.raises(ResponseError, match="NOSUCHCOMMAND"):
        either.run([ping(Plane.QUEUE), ("NOSUCHCOMMAND",)], atomic=True)
    assert either.run([ping(Plane.QUEUE)]) == [True]


@pytest.mark.parametrize("atomic", [False, True])
def test_a_connection_that_was_cut_is_made_again(
    redis: Redis, either: Pipeline | AwaitedPipeline, atomic: bool
) -> None:
    either.run([ping(Plane.QUEUE)])
    redis.client_kill_filter(_type="normal", skipme=False)
    assert either.run([ping(Plane.QUEUE), ("ECHO", "again")], atomic=atomic) == [True, b"again"]


def test_a_batch_that_broke_off_leaves_no_reply_to_the_next(redis_server: RedisServer) -> None:
    with connect(redis_server.url) as client:
        pipeline = Pipeline(client)
        pipeline.run([ping(Plane.QUEUE)])
        connection: Any = client.connection_pool.get_connection()
        client.connection_pool.release(connection)
        read, reads = connection.read_response, iter(range(3))

        def interrupt(*arguments: Any, **named: Any) -> Any:
            if next(reads) == 1:
                raise KeyboardInterrupt
            return read(*arguments, **named)

        connection.read_response = interrupt
        with pytest.raises(KeyboardInterrupt):
            pipeline.run([("ECHO", "1"), ("ECHO", "2"), ("ECHO", "3")])
        connection.read_response = read
        assert pipeline.run([("ECHO", "4")]) == [b"4"]


def test_a_server_that_is_gone_is_a_connection_error() -> None:
    with connect("redis://127.0.0.1:1", retries=0) as client, pytest.raises(ConnectionError):
        Pipeline(client).run([ping(Plane.QUEUE)])


@pytest.mark.anyio
async def test_an_awaited_batch_that_broke_off_leaves_no_reply_to_the_next(redis_server: RedisServer) -> None:
    async with connect_async(redis_server.url) as client:
        pipeline = AsyncPipeline(client)
        await pipeline.run([ping(Plane.QUEUE)])
        connection: Any = await client.connection_pool.get_connection()  # type: ignore[no-untyped-call]
        await client.connection_pool.release(connection)
        read, reads = connection.read_response, iter(range(3))

        async def interrupt(*arguments: Any, **named: Any) -> Any:
            if next(reads) == 1:
                raise asyncio.CancelledError
            return await read(*arguments, **named)

        connection.read_response = interrupt
        with pytest.raises(asyncio.CancelledError):
            await pipeline.run([("ECHO", "1"), ("ECHO", "2"), ("ECHO", "3")])
        connection.read_response = read
        assert await pipeline.run([("ECHO", "4")]) == [b"4"]


@pytest.mark.anyio
async def test_a_batch_that_is_waited_for_can_be_cancelled(redis_server: RedisServer) -> None:
    async with connect_async(redis_server.url) as client:
        pipeline = AsyncPipeline(client)
        running = asyncio.create_task(pipeline.run([("ECHO", "1"), ("BLPOP", "nothing", 30), ("ECHO", "2")]))
        await asyncio.sleep(0.1)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert await pipeline.run([("ECHO", "3")]) == [b"3"]


@pytest.mark.anyio
@pytest.mark.parametrize("state", ["connected", "not connected", "script not loaded"])
async def test_a_batch_can_be_cancelled_in_any_pass_of_the_event_loop(
    redis_server: RedisServer, redis: Redis, state: str
) -> None:
    """Python 3.11 loses a cancellation that comes as redis-py has just sent, and the task would go on."""
    lost = Call(script("cancel"), keys.of_request("req_00000000000000000000000000"), ("caller",))
    async with connect_async(redis_server.url) as client:
        pipeline = AsyncPipeline(client)
        cancelled = 0
        for passes in range(40):
            await pipeline.run([ping(Plane.QUEUE)])
            if state == "not connected":
                await client.connection_pool.disconnect()
            elif state == "script not loaded":
                redis.script_flush()
            running = asyncio.create_task(pipeline.run([lost]))
            for _ in range(passes):
                await asyncio.sleep(0)
            if running.done():
                continue  # slower passes may come to an end where these haven't
            cancelled += running.cancel()
            with pytest.raises(asyncio.CancelledError):
                async with asyncio.timeout(20):
                    await running
        assert cancelled
        assert await pipeline.run([("ECHO", "3")]) == [b"3"]


@pytest.mark.anyio
async def test_a_connection_outlives_two_cancellations(redis_server: RedisServer) -> None:
    async with connect_async(redis_server.url) as client:
        client.connection_pool.max_connections = 1
        pipeline = AsyncPipeline(client)
        lock = client.connection_pool._lock
        for _ in range(3):
            running = asyncio.create_task(pipeline.run([("BLPOP", "nothing", 30), ("ECHO", "1")]))
            await asyncio.sleep(0.05)
            async with lock:  # giving the connection back waits for it
                running.cancel()
                await asyncio.sleep(0.02)
                running.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await running
        assert await pipeline.run([("ECHO", "2")]) == [b"2"]


@pytest.mark.anyio
@pytest.mark.parametrize("count", [1, 2, 20])
async def test_a_socket_that_timed_out_is_no_reply(redis_server: RedisServer, count: int) -> None:
    """As by TCP_USER_TIMEOUT: what the kernel raises then is what asyncio raises at the end of its own time."""
    async with connect_async(redis_server.url, retries=0) as client:
        pipeline = AsyncPipeline(client)
        await pipeline.run([ping(Plane.QUEUE)])
        connection: Any = await client.connection_pool.get_connection()  # type: ignore[no-untyped-call]
        await client.connection_pool.release(connection)
        running = asyncio.create_task(pipeline.run([("BLPOP", "nothing", 30), *([ping(Plane.QUEUE)] * (count - 1))]))
        await asyncio.sleep(0.05)
        connection._reader.set_exception(OSError(errno.ETIMEDOUT, "Connection timed out"))
        with pytest.raises((ConnectionError, TimeoutError)):
            await running
        assert await pipeline.run([("ECHO", "3")]) == [b"3"]


@pytest.mark.anyio
async def test_a_server_that_stands_still_is_a_timeout_of_the_whole_batch(redis_server: RedisServer) -> None:
    async with connect_async(redis_server.url, retries=0) as client:
        client.connection_pool.connection_kwargs["socket_timeout"] = 0.05
        pipeline = AsyncPipeline(client)
        assert await pipeline.run([ping(Plane.QUEUE)]) == [True]
        with pytest.raises(TimeoutError, match=r"0\.05 s"):
            await pipeline.run([ping(Plane.QUEUE), ("BLPOP", "nothing", 30), ping(Plane.QUEUE)])
        assert await pipeline.run([("ECHO", "3")]) == [b"3"]


@pytest.mark.anyio
async def test_a_long_batch_is_timed_by_its_parts(redis_server: RedisServer) -> None:
    """Each of them within the socket's timeout, all of them not."""
    async with connect_async(redis_server.url, retries=0) as client:
        client.connection_pool.connection_kwargs["socket_timeout"] = 0.6
        batch: Batch = []
        for _ in range(4):
            batch += [("BLPOP", "nothing", 0.2), *([("ECHO", "x")] * 7)]
        replies = await AsyncPipeline(client).run(batch)
        assert replies.count(b"x") == 4 * 7
