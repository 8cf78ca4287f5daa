"""What a producer does with answers: every ending and every repeat, over the project's own test kit."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from tests.leaks import leaked_keys
from tokenrelay.producer import (
    AsyncProducer,
    Ended,
    GenerationCancelled,
    GenerationExpired,
    GenerationFailed,
    IdempotencyConflict,
    Migrated,
    Producer,
    ProducerSettings,
    QueueFull,
    State,
    StreamTimeout,
)
from tokenrelay.testing import ScriptedWorker, answers, fails, stalls

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fakeredis import FakeAsyncRedis, FakeRedis

SUNNY = ["It", " is", " sunny", " and", " warm", "."]
ANSWER = "".join(SUNNY)


@pytest.fixture
def producer(tokenrelay_redis: FakeRedis) -> Iterator[Producer]:
    """On a Redis that nobody serves until the test asks for `tokenrelay_worker`; no key may outlive its TTL."""
    with Producer(connection=tokenrelay_redis) as producer:
        yield producer
    assert leaked_keys(tokenrelay_redis) == []


def test_an_answer_is_iterated_and_then_there_as_a_whole(producer: Producer, tokenrelay_worker: ScriptedWorker) -> None:
    generation = producer.submit("What is the weather today?", metadata={"user": 1})
    tokens = list(generation)
    assert [(token.index, token.text) for token in tokens] == list(enumerate(SUNNY, 1))
    answer = generation.result()
    assert (answer.text, answer.state, answer.finish_reason) == (ANSWER, State.COMPLETED, "stop")
    assert list(answer.tokens) == tokens
    status = generation.status()
    assert (status.state, status.tokens, status.metadata) == (State.COMPLETED, 6, {"user": 1})
    assert [event.kind for event in generation.events()] == ["queued", "started", "completed"]
    assert [request["prompt"] for request in tokenrelay_worker.requests] == ["What is the weather today?"]


def test_an_answer_is_read_again_from_any_token_by_anyone_who_has_the_id(
    producer: Producer, tokenrelay_redis: FakeRedis, tokenrelay_worker: ScriptedWorker
) -> None:
    request_id = producer.submit("x").request_id
    with Producer(connection=tokenrelay_redis) as other:
        found = other.get(request_id)
        assert [token.text for token in found] == SUNNY
        assert [token.index for token in found.tokens(after=4)] == [5, 6]
        assert found.result().text == ANSWER


def test_tokens_are_read_while_the_answer_is_written(producer: Producer, tokenrelay_worker: ScriptedWorker) -> None:
    tokenrelay_worker.then(stalls(after="It is"))
    generation = producer.submit("x")
    tokens = iter(generation)
    assert [next(tokens).text, next(tokens).text] == ["It", " is"]
    assert generation.status().state == State.IN_PROGRESS
    with pytest.raises(StreamTimeout, match="keeps running"):
        generation.result(timeout_s=0.2)
    generation.cancel()


def test_an_answer_at_its_budget_is_incomplete(producer: Producer, tokenrelay_worker: ScriptedWorker) -> None:
    answer = producer.submit("x", max_new_tokens=2).result()
    assert (answer.text, answer.state, answer.finish_reason) == ("It is", State.INCOMPLETE, "length")


@pytest.mark.parametrize(("stop", "text"), [([" sunny"], "It is"), (["is s"], "It "), (["rain"], ANSWER)])
def test_a_stop_string_is_no_part_of_the_answer(
    producer: Producer, tokenrelay_worker: ScriptedWorker, stop: list[str], text: str
) -> None:
    generation = producer.submit("x", stop=stop)
    assert "".join(token.text for token in generation) == text
    answer = generation.result()
    assert (answer.text, answer.state, answer.finish_reason) == (text, State.COMPLETED, "stop")


def test_text_that_the_end_brings_is_in_the_answer_and_in_no_token(
    producer: Producer, tokenrelay_worker: ScriptedWorker
) -> None:
    tokenrelay_worker.then(answers("It", "", held=" is."))
    generation = producer.submit("x")
    assert [token.text for token in generation] == ["It", ""]
    assert generation.result().text == "It is."


def test_a_failure_is_raised_behind_its_tokens_wherever_it_is_read(
    producer: Producer, tokenrelay_worker: ScriptedWorker
) -> None:
    tokenrelay_worker.then(fails("engine_error", "it broke", after="It is"))
    generation = producer.submit("x")
    seen: list[str] = []
    with pytest.raises(GenerationFailed, match="it broke"):
        seen.extend(token.text for token in generation)
    with pytest.raises(GenerationFailed) as failure:
        generation.result()
    assert (failure.value.code, failure.value.text) == ("engine_error", "It is")
    assert failure.value.request_id == generation.request_id
    assert [event.kind for event in generation.events()] == ["queued", "started", "failed"]


def test_a_cancel_ends_the_reader_and_counts_once(producer: Producer, tokenrelay_worker: ScriptedWorker) -> None:
    tokenrelay_worker.then(stalls(after="It"))
    generation = producer.submit("x")
    tokens = iter(generation)
    assert next(tokens).text == "It"
    assert [producer.get(generation.request_id).cancel(), generation.cancel()] == [True, False]
    with pytest.raises(GenerationCancelled) as cancelled:
        next(tokens)
    assert (cancelled.value.text, cancelled.value.answer.cancelled_by) == ("It", "producer")


def test_a_cancelled_request_that_nobody_took_is_never_taken(producer: Producer, tokenrelay_redis: FakeRedis) -> None:
    worker = ScriptedWorker(tokenrelay_redis)
    first, second = producer.submit_many(["a", "b"])
    assert first.cancel()
    assert worker.answer_queued() == 1
    assert [request["prompt"] for request in worker.requests] == ["b"]
    assert second.result().text == ANSWER
    with pytest.raises(GenerationCancelled):
        first.result()


def test_leaving_a_stream_early_cancels(producer: Producer, tokenrelay_worker: ScriptedWorker) -> None:
    tokenrelay_worker.then(stalls(after="It"))
    with producer.stream("x") as generation:
        assert next(iter(generation)).text == "It"
    assert generation.status().state == State.CANCELLED
    with producer.stream("y") as whole:
        assert [token.text for token in whole] == SUNNY
    assert whole.status().state == State.COMPLETED


@pytest.mark.parametrize("crashed", [False, True])
def test_a_reader_sees_no_seam_where_another_worker_goes_on(
    producer: Producer, tokenrelay_worker: ScriptedWorker, crashed: bool
) -> None:
    tokenrelay_worker.then(answers(ANSWER).migrating(after=2, crashed=crashed).migrating(after=5, crashed=crashed))
    generation = producer.submit("one two three")
    assert [(token.index, token.text) for token in generation] == list(enumerate(SUNNY, 1))
    assert [entry.resumed_at for entry in generation.entries() if isinstance(entry, Migrated)] == [3, 6]
    answer = generation.result()
    assert (answer.text, answer.attempts) == (ANSWER, 3)
    assert answer.usage.recomputed_tokens == (3 + 2) + (3 + 5)


def test_a_deadline_keeps_what_was_written(producer: Producer, tokenrelay_worker: ScriptedWorker) -> None:
    tokenrelay_worker.then(stalls(after="It is"))
    generation = producer.submit("x", deadline_s=0.3)
    answer = generation.result()
    assert (answer.text, answer.state, answer.finish_reason) == ("It is", State.INCOMPLETE, "deadline")


def test_a_deadline_without_a_token_is_an_error(producer: Producer, tokenrelay_worker: ScriptedWorker) -> None:
    tokenrelay_worker.then(stalls())
    generation = producer.submit("x", deadline_s=0.2)
    with pytest.raises(GenerationExpired):
        generation.result()
    *_, end = generation.entries()
    assert isinstance(end, Ended)
    assert (end.state, end.finish_reason) == (State.EXPIRED, "deadline")


def test_an_idempotency_key_is_one_request_before_during_and_after_its_answer(
    producer: Producer, tokenrelay_redis: FakeRedis
) -> None:
    worker = ScriptedWorker(tokenrelay_redis, default=answers(ANSWER))
    first = producer.submit("x", idempotency_key="k")
    assert producer.submit("x", idempotency_key="k").request_id == first.request_id
    assert worker.answer_queued() == 1
    again = producer.submit("x", idempotency_key="k")
    assert (again.request_id, again.result().text) == (first.request_id, ANSWER)
    assert worker.answer_queued() == 0
    with pytest.raises(IdempotencyConflict) as conflict:
        producer.submit("y", idempotency_key="k")
    assert (conflict.value.field, conflict.value.request_id) == ("idempotency_key", first.request_id)
    assert producer.submit("x", idempotency_key="other").cancel()


def test_a_full_queue_has_room_again_once_a_worker_took_from_it(tokenrelay_redis: FakeRedis) -> None:
    producer = Producer(connection=tokenrelay_redis, settings=ProducerSettings(max_queue_depth=2))
    generations = producer.submit_many(["a", "b"])
    with pytest.raises(QueueFull) as full:
        producer.submit("c")
    assert (full.value.depth, full.value.limit) == (2, 2)
    assert ScriptedWorker(tokenrelay_redis).answer_queued() == 2
    assert [generation.result().text for generation in generations] == [ANSWER, ANSWER]
    assert producer.submit("c").cancel()


def test_an_asyncio_producer_reads_the_same(
    tokenrelay_async_redis: FakeAsyncRedis, tokenrelay_worker: ScriptedWorker
) -> None:
    tokenrelay_worker.on("fails", fails("engine_error", after="It"))
    tokenrelay_worker.on("stalls", stalls(after="It")).on("moves", answers(ANSWER).migrating(after=3))

    async def ask() -> None:
        producer = AsyncProducer(connection=tokenrelay_async_redis)
        moved, failed, stalled = await producer.submit_many(["moves", "fails", "stalls"])
        assert [token.text async for token in moved] == SUNNY
        assert (await moved.result()).attempts == 2
        with pytest.raises(GenerationFailed):
            await failed.result()
        async for token in stalled:
            assert token.text == "It"
            break
        assert await stalled.cancel()
        with pytest.raises(GenerationCancelled):
            await stalled.result()
        first = await producer.submit("x", idempotency_key="k")
        assert (await producer.submit("x", idempotency_key="k")).request_id == first.request_id
        assert (await first.result()).text == ANSWER
        await tokenrelay_async_redis.aclose()

    asyncio.run(ask())
    assert len(tokenrelay_worker.requests) == 4
