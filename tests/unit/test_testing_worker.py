"""The scripted worker on fakeredis: the results of its scripts in stream, hash and RQ."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, cast

import pytest
from rq.job import Job
from rq.serializers import JSONSerializer

from tests.leaks import leaked_keys
from tokenrelay.producer import (
    AsyncProducer,
    Ended,
    GenerationCancelled,
    GenerationExpired,
    GenerationFailed,
    Migrated,
    Producer,
    State,
)
from tokenrelay.testing import ScriptedWorker, answers, fails, fake_redis, stalls
from tokenrelay.testing.scripted_worker import DEFAULT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fakeredis import FakeAsyncRedis, FakeRedis

    from tokenrelay.producer import Generation, Message
    from tokenrelay.testing import Script


@pytest.fixture
def producer(tokenrelay_redis: FakeRedis) -> Iterator[Producer]:
    """On the Redis that `tokenrelay_worker` serves; no key of which may outlive its TTL."""
    yield Producer(connection=tokenrelay_redis)
    assert leaked_keys(tokenrelay_redis) == []


def rq_status(redis: FakeRedis, generation: Generation) -> str:
    return str(Job.fetch(generation.request_id, connection=redis, serializer=JSONSerializer).get_status())


def test_it_says_that_it_is_sunny(
    producer: Producer, tokenrelay_redis: FakeRedis, tokenrelay_worker: ScriptedWorker
) -> None:
    generation = producer.submit("What is the weather today?", seed=7, metadata={"user": 1})
    assert [token.text for token in generation] == list(DEFAULT.tokens)
    answer = generation.result()
    assert (answer.text, answer.finish_reason, answer.model, answer.seed) == (
        "It is sunny and warm.", "stop", "weather", 7,
    )  # fmt: skip
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (6, 6)
    assert tokenrelay_worker.requests[0]["metadata"] == {"user": 1}
    tokenrelay_worker.__exit__()
    assert rq_status(tokenrelay_redis, generation) == "JobStatus.FINISHED"
    tokenrelay_worker.__enter__()


def test_a_script_for_a_prompt_goes_before_the_next_and_the_default(
    producer: Producer, tokenrelay_worker: ScriptedWorker
) -> None:
    tokenrelay_worker.on("b", answers("B.")).then(answers("1."), answers("2."))
    assert [producer.submit(prompt).result().text for prompt in "abcd"] == ["1.", "B.", "2.", "It is sunny and warm."]


@pytest.mark.parametrize("crashed", [False, True])
def test_a_migration_is_in_the_stream_and_in_the_usage(
    producer: Producer, tokenrelay_worker: ScriptedWorker, crashed: bool
) -> None:
    script = DEFAULT.migrating(after=2, crashed=crashed).migrating(after=5, crashed=crashed).paced(0.001)
    tokenrelay_worker.then(script)
    generation = producer.submit("x")
    entries = list(generation.entries())
    passes = [(entry.worker, entry.resumed_at) for entry in entries if isinstance(entry, Migrated)]
    assert passes == [("scripted-2", 3), ("scripted-3", 6)]
    answer = generation.result()
    assert (answer.text, answer.attempts, answer.usage.recomputed_tokens) == (
        "It is sunny and warm.", 3, (1 + 2) + (1 + 5),
    )  # fmt: skip


def test_three_deaths_without_a_token_are_poison(producer: Producer, tokenrelay_worker: ScriptedWorker) -> None:
    script = DEFAULT
    for _ in range(3):
        script = script.migrating(after=0, crashed=True)
    tokenrelay_worker.then(script)
    with pytest.raises(GenerationFailed) as failure:
        producer.submit("x").result()
    assert failure.value.code == "poison_request"


def test_a_failure_has_the_partial_text(producer: Producer, tokenrelay_worker: ScriptedWorker) -> None:
    tokenrelay_worker.then(fails("engine_error", "it broke", after="It is"))
    with pytest.raises(GenerationFailed, match="it broke") as failure:
        producer.submit("x").result()
    assert (failure.value.code, failure.value.text) == ("engine_error", "It is")


def test_text_that_no_token_released_comes_with_the_end(producer: Producer, tokenrelay_worker: ScriptedWorker) -> None:
    tokenrelay_worker.then(answers("It", "", held=" is."))
    generation = producer.submit("x")
    assert [token.text for token in generation] == ["It", ""]
    assert generation.result().text == "It is."


def test_a_stalled_request_ends_by_cancel(
    producer: Producer, tokenrelay_redis: FakeRedis, tokenrelay_worker: ScriptedWorker
) -> None:
    tokenrelay_worker.then(stalls(after="It"))
    generation = producer.submit("x")
    assert next(iter(generation)).text == "It"
    assert generation.cancel()
    with pytest.raises(GenerationCancelled):
        generation.result()
    tokenrelay_worker.__exit__()
    assert rq_status(tokenrelay_redis, generation) == "JobStatus.CANCELED"
    tokenrelay_worker.__enter__()


@pytest.mark.parametrize(("after", "state"), [("It is", State.INCOMPLETE), ("", State.EXPIRED)])
def test_a_stalled_request_ends_by_its_deadline(
    producer: Producer, tokenrelay_worker: ScriptedWorker, after: str, state: State
) -> None:
    tokenrelay_worker.then(stalls(after=after))
    *_, end = producer.submit("x", deadline_s=0.5).entries()
    assert isinstance(end, Ended)
    assert (end.state, end.finish_reason) == (state, "deadline")


def test_a_delayed_request_expires_in_the_queue(producer: Producer, tokenrelay_worker: ScriptedWorker) -> None:
    tokenrelay_worker.then(DEFAULT.delayed(0.3))
    with pytest.raises(GenerationExpired):
        producer.submit("x", deadline_s=0.1).result()


def test_slow_requests_dont_wait_for_each_other(producer: Producer, tokenrelay_worker: ScriptedWorker) -> None:
    tokenrelay_worker.on("slow", stalls(after="It"))
    slow = producer.submit("slow")
    assert next(iter(slow)).text == "It"
    assert producer.submit("quick").result().text == "It is sunny and warm."
    slow.cancel()


def test_leaving_the_block_hands_back_and_the_next_worker_continues(tokenrelay_redis: FakeRedis) -> None:
    producer = Producer(connection=tokenrelay_redis)
    with ScriptedWorker(tokenrelay_redis, name="one", default=stalls(after="It is")):
        generation = producer.submit("x")
        tokens = iter(generation)
        assert [next(tokens).text, next(tokens).text] == ["It", " is"]
    with ScriptedWorker(tokenrelay_redis, name="two"):
        assert generation.result().text == "It is sunny and warm."
    assert [event.kind for event in generation.events()] == ["queued", "started", "migrated", "completed"]


def test_a_worker_works_when_it_is_told_to(producer: Producer, tokenrelay_redis: FakeRedis) -> None:
    worker = ScriptedWorker(tokenrelay_redis).then(answers("1.").migrating(after=1), stalls(after="2"))
    generations = producer.submit_many(["a", "b"])
    assert [generation.status().state for generation in generations] == ["queued", "queued"]
    assert worker.answer_queued() == 2
    assert [generation.status().state for generation in generations] == ["completed", "in_progress"]
    assert worker.answer_queued() == 0
    generations[1].cancel()


def test_chats_priorities_and_other_models(producer: Producer, tokenrelay_redis: FakeRedis) -> None:
    worker = ScriptedWorker(tokenrelay_redis, model="owner/name")
    chat = cast("list[Message]", [{"role": "user", "content": "Hello you"}])
    low = producer.submit(messages=chat, model="owner/name", priority="low")
    high = producer.submit("x", model="owner/name", priority="high")
    other = producer.submit("x")
    assert worker.answer_queued() == 2
    assert [request["priority"] for request in worker.requests] == ["high", "low"]
    assert (low.result().usage.prompt_tokens, high.result().model, other.status().state) == (2, "owner/name", "queued")


def test_asyncio_readers_wake(tokenrelay_async_redis: FakeAsyncRedis, tokenrelay_worker: ScriptedWorker) -> None:
    async def ask(script: Script, count: int) -> list[str]:
        tokenrelay_worker.default = script
        producer = AsyncProducer(connection=tokenrelay_async_redis)
        generations = await producer.submit_many(["x"] * count)
        answers = await asyncio.gather(*(generation.result(timeout_s=60) for generation in generations))
        await tokenrelay_async_redis.aclose()
        return [answer.text for answer in answers]

    assert asyncio.run(ask(DEFAULT.paced(0.01).migrating(after=3), 5)) == ["It is sunny and warm."] * 5


def test_what_goes_wrong_in_the_worker_is_raised(tokenrelay_redis: FakeRedis) -> None:
    seen = threading.Event()

    class Broken(ScriptedWorker):
        def _script_of(self, attempt: object) -> Script:
            seen.set()
            raise RuntimeError("no script")

    def use() -> None:
        with Broken(tokenrelay_redis):
            Producer(connection=tokenrelay_redis).submit("x")
            assert seen.wait(60)

    with pytest.raises(RuntimeError, match="no script"):
        use()


def test_each_fake_is_a_redis_of_its_own() -> None:
    with fake_redis() as one, fake_redis() as two:
        one.set("key", "value", ex=1)
        assert two.keys() == []


def test_importing_the_plugin_takes_no_fakeredis_and_the_kit_no_torch() -> None:
    code = (
        "import sys, tokenrelay.pytest_plugin; early = [n for n in ('fakeredis', 'redis') if n in sys.modules];"
        "import tokenrelay.testing; print(early, [n for n in ('torch', 'tokenrelay.worker') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[] []"
