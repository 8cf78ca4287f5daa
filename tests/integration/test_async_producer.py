"""AsyncProducer and AsyncConsumer: the same steps, awaited, and what asyncio adds: cancellation."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import anyio
import pytest

from tests.writers import WEATHER, End, Writer, serving
from tokenrelay.producer import (
    AsyncConsumer,
    AsyncGeneration,
    AsyncProducer,
    GenerationCancelled,
    GenerationError,
    GenerationExpired,
    GenerationFailed,
    IdempotencyConflict,
    NoWorkerWarning,
    ProducerSettings,
    QueueFull,
    RedisUnusable,
    RequestError,
    RequestNotFound,
    State,
    StreamTimeout,
)
from tokenrelay.shared.wire import keys

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from redis import Redis

    from tests.redis_servers import RedisServer

pytestmark = pytest.mark.anyio


@pytest.fixture
async def producer(redis_server: RedisServer) -> AsyncIterator[AsyncProducer]:
    async with AsyncProducer(redis_server.url, settings=ProducerSettings(max_queue_depth=5)) as producer:
        yield producer


@pytest.fixture
def writer(redis: Redis) -> Writer:
    writer = Writer(redis)
    writer.appear()
    return writer


async def test_tokens_events_and_answers(redis_server: RedisServer, producer: AsyncProducer) -> None:
    with serving(redis_server.url):
        generation = await producer.submit("x", seed=7, metadata={"a": 1})
        assert [token.text async for token in generation] == list(WEATHER)
        assert (await generation.result()).metadata == {"a": 1}
        assert generation.text == "It is sunny and warm."
        async with AsyncConsumer(redis_server.url) as consumer:
            again = await consumer.get(generation.request_id)
            assert [token.index async for token in again.tokens(after=3)] == [4, 5, 6]
            assert [event.kind async for event in again.events()] == ["queued", "started", "completed"]
            assert (await again.status()).state == State.COMPLETED


async def test_more_generations_on_one_loop_than_redis_py_opens_connections_for(redis_server: RedisServer) -> None:
    async with AsyncProducer(redis_server.url) as producer:
        generations = await producer.submit_many([f"question {number}" for number in range(120)])
        with serving(redis_server.url):
            answers = await asyncio.gather(*(generation.result(timeout_s=30) for generation in generations))
    assert {answer.text for answer in answers} == {"It is sunny and warm."}


async def test_refusals(producer: AsyncProducer, redis: Redis) -> None:
    with pytest.raises(RequestError, match="max_new_tokens"):
        await producer.submit("x", max_new_tokens=0)
    with pytest.raises(QueueFull):
        await producer.submit_many(["x"] * 6)
    with pytest.raises(RequestNotFound):
        await producer.get(keys.new_request_id())
    assert redis.keys() == []
    with pytest.raises(RedisUnusable, match="is it running there"):
        async with AsyncProducer("redis://127.0.0.1:1/0") as nowhere:
            await nowhere.submit("x")


async def test_idempotency(producer: AsyncProducer) -> None:
    first, second = await asyncio.gather(*(producer.submit("x", idempotency_key="k") for _ in range(2)))
    assert first.request_id == second.request_id
    with pytest.raises(IdempotencyConflict):
        await producer.submit("y", idempotency_key="k")


async def test_unhappy_ends(producer: AsyncProducer, writer: Writer) -> None:
    failed = await producer.submit("x")
    assert writer.take() == failed.request_id
    writer.answer(failed.request_id, ("It",), End("failed", "error", "", "engine", "broke"))
    expired = await producer.submit("x", deadline_s=0.2)
    cancelled = await producer.submit("x")
    assert [writer.take(), writer.take()] == [expired.request_id, cancelled.request_id]
    writer.claim(cancelled.request_id)
    writer.append(cancelled.request_id, "It")
    assert await cancelled.cancel() is True
    ends: list[tuple[AsyncGeneration, type[GenerationError], str]] = [
        (failed, GenerationFailed, "It"),
        (expired, GenerationExpired, ""),
        (cancelled, GenerationCancelled, "It"),
    ]
    for generation, error, partial in ends:
        with pytest.raises(error) as iterated:
            [token async for token in generation]
        with pytest.raises(error) as awaited:
            await generation.result()
        assert iterated.value.text == awaited.value.text == partial


async def test_no_worker_is_warned_of_and_a_timeout_cancels_nothing(producer: AsyncProducer) -> None:
    generation = await producer.submit("x")
    with pytest.warns(NoWorkerWarning) as caught, pytest.raises(StreamTimeout):
        await generation.result(timeout_s=2)
    assert [warning.filename for warning in caught] == [__file__]
    assert (await generation.status()).state == State.QUEUED


async def test_a_cancelled_task_leaves_generation_and_connections_as_they_were(
    producer: AsyncProducer, writer: Writer
) -> None:
    generation = await producer.submit("x")
    assert writer.take() == generation.request_id
    writer.claim(generation.request_id)
    writer.append(generation.request_id, "It")
    for _ in range(5):
        with anyio.move_on_after(0.05) as scope:
            await generation.result()
        assert scope.cancelled_caught
        # A connection whose reply was left unread would answer these with it.
        assert (await generation.status()).state == State.IN_PROGRESS
        assert (await producer.get(generation.request_id)).request_id == generation.request_id
    writer.finish(generation.request_id)
    assert (await generation.result()).text == "It"


@pytest.mark.parametrize("how", ["break", "scope", "task"])
async def test_leaving_a_stream_early_cancels(producer: AsyncProducer, writer: Writer, how: str) -> None:
    ids: list[str] = []

    async def read() -> None:
        async with producer.stream("x") as short:
            ids.append(short.request_id)
            assert writer.take() == short.request_id
            writer.claim(short.request_id)
            writer.append(short.request_id, "It")
            async for _ in short:
                if how == "break":
                    break

    if how == "break":
        await read()
    elif how == "scope":
        with anyio.move_on_after(0.3):
            await read()
    else:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(read(), 0.3)
    assert (await (await producer.get(ids[0])).status()).state == State.CANCELLED


async def test_a_finished_stream_is_not_cancelled(producer: AsyncProducer, writer: Writer) -> None:
    async with producer.stream("x") as whole:
        assert writer.take() == whole.request_id
        writer.answer(whole.request_id)
    assert (await whole.result()).state == State.COMPLETED


async def test_killed_connections_cost_no_token(producer: AsyncProducer, writer: Writer, redis: Redis) -> None:
    generation = await producer.submit("x")
    assert writer.take() == generation.request_id
    writer.claim(generation.request_id)
    texts = []
    writer.append(generation.request_id, "It")
    async for token in generation:
        texts.append(token.text)
        if len(texts) < len(WEATHER):
            redis.client_kill_filter(_type="normal", skipme=True)
            writer.append(generation.request_id, WEATHER[len(texts)])
        else:
            writer.finish(generation.request_id)
    assert texts == list(WEATHER)
