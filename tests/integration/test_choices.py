"""Several choices of one call: each a request of its own, all admitted and created together."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import pytest

from tests.engines import CountingEngine
from tests.workers import MODEL, VOCABULARY, running_worker
from tokenrelay.producer import (
    AsyncProducer,
    GenerationCancelled,
    IdempotencyConflict,
    Producer,
    ProducerSettings,
    QueueFull,
)
from tokenrelay.producer._core.drivers import Driver
from tokenrelay.producer._core.planning import plan_choices
from tokenrelay.producer._core.submission import OwnerLimitReached, Submitter
from tokenrelay.shared.options import load
from tokenrelay.shared.store.admissions import OwnerLimits
from tokenrelay.shared.wire import keys
from tokenrelay.shared.wire.entries import text

if TYPE_CHECKING:
    from redis import Redis

    from tests.redis_servers import RedisServer
    from tests.writers import Writer
    from tokenrelay.producer._core.planning import Plan
    from tokenrelay.shared.redis.batches import Pipeline
    from tokenrelay.worker.engine.contract import EngineRequest

OWNER: Final = "alice"
NAME: Final = keys.queue("weather", "default")
QUEUE: Final = keys.rq_queue(NAME)


def planned(n: int, prompt: str = "x", key: str | None = None) -> list[Plan]:
    submission = {"prompt": prompt, **({"idempotency_key": key} if key else {})}
    return [replace(plan, owner=OWNER) for plan in plan_choices([submission], n, ProducerSettings())]


def submitter(**settings: Any) -> Submitter:
    return Submitter(ProducerSettings(**settings))


def counted(redis: Redis) -> set[str]:
    return {text(member) for member in redis.zrange(keys.of_owner(OWNER), 0, -1)}


def queued(redis: Redis) -> list[str]:
    return [text(member) for member in redis.lrange(QUEUE, 0, -1)]


def requests_there(redis: Redis) -> set[str]:
    return {text(key) for key in redis.scan_iter("tokenrelay:{*}:request")}


def stored(redis: Redis, request_id: str) -> Any:
    return load(redis.hget(keys.request(request_id), "request") or b"", 2)


def test_each_choice_is_a_request_of_its_own(producer: Producer, writer: Writer) -> None:
    """One is cancelled, and the others go on; the handles' order is the choices'."""
    first, second, third = producer.submit_choices("x", n=3, seed=7)
    assert [each.request_id for each in (second, third)] == [f"{first.request_id}-{k}" for k in (1, 2)]
    taken = [writer.take(), writer.take(), writer.take()]
    assert taken == [first.request_id, second.request_id, third.request_id]
    for each in (third, first):
        writer.answer(each.request_id)
    assert second.cancel()
    with pytest.raises(GenerationCancelled):
        second.result()
    assert [each.result().text for each in (first, third)] == ["It is sunny and warm."] * 2
    assert producer.get(third.request_id).result().text == "It is sunny and warm."


@pytest.mark.anyio
async def test_the_asyncio_producer_does_the_same(redis_server: RedisServer, redis: Redis) -> None:
    async with AsyncProducer(redis_server.url) as producer:
        handles = await producer.submit_choices("x", n=3, seed=7)
    assert queued(redis) == [each.request_id for each in handles]
    with Producer(redis_server.url) as sync:
        again = sync.submit_choices("x", n=3, seed=7)
    seeds = [[stored(redis, each.request_id)["seed"] for each in group] for group in (handles, again)]
    assert seeds[0] == seeds[1]


def test_a_queue_without_room_for_all_takes_none(redis: Redis, redis_server: RedisServer) -> None:
    with Producer(redis_server.url, settings=ProducerSettings(max_queue_depth=5)) as producer:
        producer.submit_choices("x", n=3)
        for key in (None, "k"):
            before = requests_there(redis)
            with pytest.raises(QueueFull, match="3 requests wait, at most 5 may, so 3 more don't fit"):
                producer.submit_choices("x", n=3, idempotency_key=key)
            assert len(queued(redis)) == 3
            assert requests_there(redis) == before
        producer.submit_choices("x", n=2)
        with pytest.raises(QueueFull, match="submit 5 at a time at most"):
            producer.submit_choices("x", n=6)


@pytest.mark.parametrize("key", [None, "k"])
def test_a_queue_that_fills_up_meanwhile_gets_none_either(redis: Redis, pipeline: Pipeline, key: str | None) -> None:
    """Others enqueue between the look at its depth and ours: the first choice decides for all."""
    steps = submitter(max_queue_depth=4).write(planned(3, key=key))
    driver = Driver(*pipeline.servers)
    replies = driver._answer(next(steps))
    redis.rpush(QUEUE, "one", "two")
    with pytest.raises(QueueFull):
        driver.run(_resumed(steps, replies))
    assert queued(redis) == ["one", "two"]


def _resumed(steps: Any, replies: Any) -> Any:
    item = steps.send(replies)
    try:
        while True:
            item = steps.send((yield item))
    except StopIteration as stop:
        return stop.value


@pytest.mark.parametrize(("concurrent", "waiting"), [(4, 9), (9, 4)])
def test_limits_count_each_choice_and_let_all_in_or_none(
    redis: Redis, pipeline: Pipeline, concurrent: int, waiting: int
) -> None:
    """With 3 of 4 open, 2 more don't fit, and 1 does."""
    driver, limits = Driver(*pipeline.servers), OwnerLimits(OWNER, concurrent, waiting)
    first = driver.run(submitter().submit_choices(planned(3), limits))
    assert counted(redis) == {each.request_id for each in first}
    with pytest.raises(OwnerLimitReached):
        driver.run(submitter().submit_choices(planned(2), limits))
    assert counted(redis) == {each.request_id for each in first} == set(queued(redis))
    (fourth,) = driver.run(submitter().submit_choices(planned(1), limits))
    assert counted(redis) == {fourth.request_id, *(each.request_id for each in first)}


def test_submits_at_once_never_pass_a_limit(redis: Redis, redis_server: RedisServer) -> None:
    """Eight callers of 3 choices each; 10 may be open, so 3 callers get in, each whole."""
    barrier, limits = threading.Barrier(8), OwnerLimits(OWNER, 10, 10)

    def submit(_: int) -> bool:
        with Producer(redis_server.url) as producer:
            barrier.wait(60)
            try:
                producer._driver.run(submitter().submit_choices(planned(3), limits))
            except OwnerLimitReached:
                return False
            return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(submit, range(8))) == 3
    assert len(counted(redis)) == len(queued(redis)) == 9


def test_choices_that_have_ended_make_room(redis: Redis, pipeline: Pipeline, producer: Producer) -> None:
    """Only as many as the next call needs are asked for, by the requests' own state."""
    driver, limits = Driver(*pipeline.servers), OwnerLimits(OWNER, 3, 3)
    for each in driver.run(submitter().submit_choices(planned(3), limits))[:2]:
        producer.get(each.request_id).cancel()
    with pytest.raises(OwnerLimitReached):
        driver.run(submitter().submit_choices(planned(3), limits))
    assert len(driver.run(submitter().submit_choices(planned(2), limits))) == 2


def test_a_keyed_retry_attaches_to_all(producer: Producer, redis: Redis, writer: Writer) -> None:
    """Running, ended and queued ones; without a seed, too."""
    first = producer.submit_choices("x", n=3, idempotency_key="k")
    ids, drawn = [each.request_id for each in first], [stored(redis, each.request_id)["seed"] for each in first]
    writer.answer(writer.take() or "")
    writer.claim(writer.take() or "")
    again = producer.submit_choices("x", n=3, idempotency_key="k")
    assert [each.request_id for each in again] == ids
    assert queued(redis) == ids[2:]
    assert [stored(redis, each)["seed"] for each in ids] == drawn
    for other in ({"n": 2}, {"n": 4}, {"n": 3, "temperature": 0.5}):
        with pytest.raises(IdempotencyConflict):
            producer.submit_choices("x", idempotency_key="k", **other)
    with pytest.raises(IdempotencyConflict):
        producer.submit("x", idempotency_key="k")
    assert requests_there(redis) == {keys.request(each) for each in ids}


@pytest.mark.parametrize(
    ("created", "a_moment_ago"), [(0, True), (1, True), (2, True), (3, True), (1, False), (2, False)]
)
def test_a_keyed_retry_heals_a_producer_that_died_midway(
    producer: Producer, redis: Redis, created: int, a_moment_ago: bool
) -> None:
    """It had bound the key and created some of three; none was enqueued. The seeds are the ones that it had drawn."""
    first = producer.submit_choices("x", n=3, idempotency_key="k")
    ids, drawn = [each.request_id for each in first], [stored(redis, each.request_id)["seed"] for each in first]
    redis.delete(QUEUE, *(keys.rq_job(each) for each in ids))
    for each in ids[created:]:
        redis.delete(*keys.of_request(each))
    if not a_moment_ago:
        redis.delete(keys.idempotency_mark("k"))
    again = producer.submit_choices("x", n=3, idempotency_key="k")
    assert [each.request_id for each in again] == ids == queued(redis)
    assert [stored(redis, each)["seed"] for each in ids] == drawn


def test_callers_at_once_under_one_key_write_the_same_choices(redis: Redis, redis_server: RedisServer) -> None:
    barrier = threading.Barrier(6)

    def submit(_: int) -> tuple[str, ...]:
        with Producer(redis_server.url) as producer:
            barrier.wait(60)
            return tuple(each.request_id for each in producer.submit_choices("x", n=4, idempotency_key="k"))

    with ThreadPoolExecutor(6) as pool:
        (ids,) = set(pool.map(submit, range(6)))
    assert sorted(queued(redis)) == sorted(ids)
    expected = [plan.under(ids[0]).request["seed"] for plan in planned(4, key="k")]
    assert [stored(redis, each)["seed"] for each in ids] == expected


def test_a_choice_whose_retention_is_over_is_never_made_again(producer: Producer, redis: Redis, writer: Writer) -> None:
    first = producer.submit_choices("x", n=3, idempotency_key="k")
    ids = [each.request_id for each in first]
    for _ in ids:
        writer.answer(writer.take() or "")
    redis.delete(*keys.of_request(ids[1]), keys.idempotency_mark("k"))
    assert [each.request_id for each in producer.submit_choices("x", n=3, idempotency_key="k")] == ids
    assert not redis.exists(keys.request(ids[1]))
    assert not queued(redis)


class Recording(CountingEngine):
    """Keeps what it's asked for."""

    def __init__(self) -> None:
        super().__init__(vocabulary=VOCABULARY)
        self.added: list[EngineRequest] = []

    def add(self, request: EngineRequest) -> None:
        self.added.append(request)
        super().add(request)


def test_the_engine_knows_which_requests_share_their_prompt(redis_server: RedisServer) -> None:
    """And draws each with the seed that was derived for it."""
    engine = Recording()
    with running_worker(redis_server.url, engine), Producer(redis_server.url) as producer:
        producer.submit("w1 w2 w3", model=MODEL, max_new_tokens=3, seed=7).result(60)
        for each in producer.submit_choices("w1 w2 w3", n=3, model=MODEL, max_new_tokens=3, seed=7):
            each.result(60)
    alone, *several = engine.added
    assert not alone.shares_prompt
    assert all(each.shares_prompt and each.prompt_ids == alone.prompt_ids for each in several)
    expected = [plan.request["seed"] for plan in plan_choices([{"prompt": "x", "seed": 7}], 3, ProducerSettings())]
    assert sorted(each.sampling.seed for each in several) == sorted(filter(None, expected))
