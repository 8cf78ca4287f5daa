"""asyncio readers that wait together: on few connections, and without being in each other's way."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from redis.exceptions import ResponseError

from tests.token_plane import reply_word
from tokenrelay.producer import AsyncProducer, ProtocolError
from tokenrelay.producer._core.shared_waits import SharedWaits
from tokenrelay.producer._core.steps import Wait
from tokenrelay.shared.redis.batches import AsyncPipeline, Pipeline
from tokenrelay.shared.redis.connections import connect_async
from tokenrelay.shared.wire import keys

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from redis import Redis

    from tests.redis_servers import RedisServer
    from tests.writers import Writer
    from tokenrelay.producer import AsyncGeneration
    from tokenrelay.shared.redis.commands import Batch

pytestmark = pytest.mark.anyio

PATIENCE_S = 60


@pytest.fixture
async def producer(redis_server: RedisServer) -> AsyncIterator[AsyncProducer]:
    async with AsyncProducer(redis_server.url) as producer:
        yield producer


@pytest.fixture
async def waits(redis_server: RedisServer) -> AsyncIterator[SharedWaits]:
    async with connect_async(redis_server.url) as client:
        yield SharedWaits(AsyncPipeline(client))


async def running(producer: AsyncProducer, writer: Writer, number: int) -> list[AsyncGeneration]:
    """So many requests, claimed and without a token."""
    generations = await producer.submit_many([f"question {each}" for each in range(number)])
    for generation in generations:
        assert writer.take() == generation.request_id
        writer.claim(generation.request_id)
    return generations


async def blocked(redis: Redis, number: int) -> None:
    """Return once so many connections are blocked."""
    async with asyncio.timeout(PATIENCE_S):
        while redis.info("clients")["blocked_clients"] != number:  # noqa: ASYNC110  it's Redis that is waited for
            await asyncio.sleep(0.01)


async def step(writer: Writer, generations: list[AsyncGeneration], *, atomic: bool = False) -> None:
    """A token for each, and time to read it."""
    pipeline: Batch = [writer.append_call(generation.request_id, " on") for generation in generations]
    replies = Pipeline(writer.redis).run(pipeline, atomic=atomic)
    assert [reply_word(reply) for reply in replies] == ["OK"] * len(generations)
    await asyncio.sleep(0.1)


async def steps_until_blocked(redis: Redis, at_most: int, writer: Writer, generations: list[AsyncGeneration]) -> int:
    """How many it took: what a step wakes in one pass of the event loop waits together from then on."""
    steps = 0
    async with asyncio.timeout(PATIENCE_S):
        while not 0 < redis.info("clients")["blocked_clients"] <= at_most or not steps:
            await step(writer, generations)
            steps += 1
    return steps


async def test_hundreds_that_begin_one_after_the_other_wait_on_few_connections(waits: SharedWaits) -> None:
    """As idle readers do, whose round trips take turns."""
    waiting = []
    for number in range(300):
        waiting.append(asyncio.create_task(waits.run(Wait(f"test:{number}", "1-0", 60_000))))
        for _ in range(4):
            await asyncio.sleep(0)
    async with asyncio.timeout(PATIENCE_S):
        while sum(map(len, waits._reads.values())) < len(waiting):  # noqa: ASYNC110  as above
            await asyncio.sleep(0.01)
    assert len(waits._reads) <= 60
    for wait in waiting:
        wait.cancel()
    await asyncio.wait(waiting)


async def test_readers_of_a_worker_wait_on_few_connections(
    producer: AsyncProducer, writer: Writer, redis: Redis
) -> None:
    generations = await running(producer, writer, 32)
    tasks = [asyncio.ensure_future(generation.result()) for generation in generations]
    steps = await steps_until_blocked(redis, 3, writer, generations)
    for generation in generations:
        writer.finish(generation.request_id)
    assert {answer.text for answer in await asyncio.gather(*tasks)} == {" on" * steps}


async def test_a_step_is_read_with_two_commands(producer: AsyncProducer, writer: Writer, redis: Redis) -> None:
    """Its first entry wakes who waits, and one read has the others' entries and every last one."""
    generations = await running(producer, writer, 8)
    tasks = [asyncio.ensure_future(generation.result()) for generation in generations]
    await steps_until_blocked(redis, 1, writer, generations)
    redis.config_resetstat()
    for _ in range(3):
        await step(writer, generations, atomic=True)
    stats = redis.info("commandstats")
    assert 3 * 2 <= stats["cmdstat_xread"]["calls"] <= 4 * 2 + 1  # once more where a block's time ran out
    assert stats.get("cmdstat_xrange", {"calls": 0})["calls"] <= 8
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_who_waits_together_sees_the_last_entry_as_it_is_now(waits: SharedWaits, redis: Redis) -> None:
    streams = {"test:token": "2-0", "test:event": "2-1", "test:lost": "3-0", "test:idle": "2-0"}
    for stream in streams:
        for entry_id in ("1-0", "2-0", "2-1")[: 3 if stream == "test:event" else 2]:
            redis.xadd(stream, {"said": entry_id}, id=entry_id)
    pending = [asyncio.ensure_future(waits.run(Wait(stream, after, 500))) for stream, after in streams.items()]
    await blocked(redis, 1)
    with redis.pipeline() as step:
        for stream in ("test:token", "test:event"):
            step.xadd(stream, {"said": "3-0"}, id="3-0")
        step.execute()
    token, event, lost, idle = await asyncio.gather(*pending)
    redis.delete(*streams)
    new = (b"3-0", {b"said": b"3-0"})
    assert token == [[new], [(b"2-0", {b"said": b"2-0"})]]
    assert event == [[new], [(b"2-1", {b"said": b"2-1"})]]
    assert lost == [[], []]
    assert idle == [[], [(b"2-0", {b"said": b"2-0"})]]


async def test_more_streams_than_one_read_takes(producer: AsyncProducer, writer: Writer, redis: Redis) -> None:
    generations = await running(producer, writer, 70)
    tasks = [asyncio.ensure_future(generation.result()) for generation in generations]
    steps = await steps_until_blocked(redis, 6, writer, generations)
    for generation in generations:
        writer.finish(generation.request_id)
    assert {answer.text for answer in await asyncio.gather(*tasks)} == {" on" * steps}


async def test_readers_of_one_stream_from_different_places(
    producer: AsyncProducer, writer: Writer, redis: Redis
) -> None:
    (generation,) = await running(producer, writer, 1)
    request_id = generation.request_id

    async def read(after: int) -> list[int]:
        return [token.index async for token in generation.tokens(after)]

    tasks = [asyncio.ensure_future(read(after)) for after in (0, 2, 1, 0)]
    await blocked(redis, 4)
    for _ in range(3):
        writer.append(request_id, " on")
        await asyncio.sleep(0.02)
    writer.finish(request_id)
    async with asyncio.timeout(PATIENCE_S):
        assert await asyncio.gather(*tasks) == [[1, 2, 3], [3], [2, 3], [1, 2, 3]]


async def test_a_stream_that_cant_be_read_keeps_nobody_else(
    producer: AsyncProducer, writer: Writer, redis: Redis
) -> None:
    generations = await running(producer, writer, 4)
    tasks = [asyncio.ensure_future(generation.result()) for generation in generations]
    steps = await steps_until_blocked(redis, 2, writer, generations)
    broken, *others = generations
    stream = keys.stream(broken.request_id)
    redis.delete(stream)
    redis.set(stream, "no stream", ex=60)
    await step(writer, others)
    with pytest.raises(ProtocolError, match="another type"):
        await tasks[0]
    for generation in others:
        writer.finish(generation.request_id)
    assert {answer.text for answer in await asyncio.gather(*tasks[1:])} == {" on" * (steps + 1)}


async def test_who_leaves_leaves_the_others_waiting_and_the_last_no_connection(
    producer: AsyncProducer, writer: Writer, redis: Redis
) -> None:
    generations = await running(producer, writer, 4)
    tasks = [asyncio.ensure_future(generation.result()) for generation in generations]
    steps = await steps_until_blocked(redis, 2, writer, generations)
    tasks[0].cancel()
    await step(writer, generations)
    assert generations[1].text == " on" * (steps + 1)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    async with asyncio.timeout(0.8):  # a block's time is 1 s
        await blocked(redis, 0)


async def test_what_is_refused_for_one_is_refused_to_it_alone(waits: SharedWaits, redis: Redis) -> None:
    redis.xadd("test:good", {"field": "value"}, id="1-0")
    redis.set("test:bad", "no stream", ex=60)
    good, bad = Wait("test:good", "0-9", 5000), Wait("test:bad", "0-9", 5000)
    answers = await asyncio.gather(waits.run(good), waits.run(bad))
    redis.delete("test:good")
    assert answers[0] == [[(b"1-0", {b"field": b"value"})], []]
    assert isinstance(answers[1], list)
    assert all(isinstance(reply, ResponseError) for reply in answers[1])


async def test_one_whose_time_is_over_keeps_nobody_else(waits: SharedWaits, redis: Redis) -> None:
    patient = asyncio.ensure_future(waits.run(Wait("test:patient", "0-9", 4000)))
    async with asyncio.timeout(3):
        assert await waits.run(Wait("test:hasty", "0-9", 100)) == [[], []]
    redis.xadd("test:patient", {"field": "value"}, id="1-0")
    assert await patient == [[(b"1-0", {b"field": b"value"})], []]
    redis.delete("test:patient")


async def test_streams_that_step_apart_are_read_apart(producer: AsyncProducer, writer: Writer, redis: Redis) -> None:
    """Or each token of one would have all the others looked at."""
    generations = await running(producer, writer, 8)
    tasks = [asyncio.ensure_future(generation.result()) for generation in generations]
    await steps_until_blocked(redis, 2, writer, generations)
    for generation in generations:
        await step(writer, [generation])
    await blocked(redis, 8)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_connections_that_are_cut_cost_no_token(producer: AsyncProducer, writer: Writer, redis: Redis) -> None:
    generations = await running(producer, writer, 8)
    tasks = [asyncio.ensure_future(generation.result()) for generation in generations]
    steps = await steps_until_blocked(redis, 2, writer, generations)
    for _ in range(3):
        redis.client_kill_filter(_type="normal", skipme=True)
        await step(writer, generations)
    for generation in generations:
        writer.finish(generation.request_id)
    assert {answer.text for answer in await asyncio.gather(*tasks)} == {" on" * (steps + 3)}


async def test_an_error_that_isnt_rediss_reaches_its_reader_alone(redis_server: RedisServer, redis: Redis) -> None:
    redis.xadd("test:good", {"field": "value"}, id="1-0")
    redis.xadd("test:bad", {"field": b"\xff"}, id="1-0")
    async with connect_async(f"{redis_server.url}?decode_responses=true") as client:
        waits = SharedWaits(AsyncPipeline(client))
        good, bad = Wait("test:good", "0-9", 5000), Wait("test:bad", "0-9", 5000)
        async with asyncio.timeout(PATIENCE_S):
            answers = await asyncio.gather(waits.run(good), waits.run(bad), return_exceptions=True)
    redis.delete("test:good", "test:bad")
    assert answers[0] == [[("1-0", {"field": "value"})], []]
    assert isinstance(answers[1], UnicodeDecodeError)
