"""One request per idempotency key, whoever sends it again and whenever."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import SecretStr

from tests.waiting import wait_until
from tests.writers import Writer
from tokenrelay.producer import IdempotencyConflict, Producer, ProducerSettings, QueueFull, RedisUnusable
from tokenrelay.shared.redis.batches import Pipeline
from tokenrelay.shared.redis.commands import Batch, Call
from tokenrelay.shared.wire import keys

if TYPE_CHECKING:
    from collections.abc import Iterator

    from redis import Redis

    from tests.conftest import MakeRedisServer
    from tests.redis_servers import RedisServer

QUEUE = keys.rq_queue(keys.queue("weather", "default"))


@pytest.fixture
def producer(redis_server: RedisServer, redis: Redis) -> Iterator[Producer]:
    with Producer(redis_server.url, settings=ProducerSettings(max_queue_depth=5)) as producer:
        yield producer


@pytest.fixture
def writer(redis: Redis) -> Writer:
    writer = Writer(redis)
    writer.appear()
    return writer


def test_an_idempotency_key_attaches_to_the_running_and_the_finished_generation(
    producer: Producer, redis: Redis, writer: Writer
) -> None:
    first = producer.submit("x", idempotency_key="k")
    assert producer.submit("x", idempotency_key="k").request_id == first.request_id
    assert redis.llen(QUEUE) == 1
    assert writer.take() == first.request_id
    writer.answer(first.request_id)
    again = producer.submit("x", idempotency_key="k")
    assert (again.request_id, again.result().text) == (first.request_id, "It is sunny and warm.")
    assert redis.llen(QUEUE) == 0
    with pytest.raises(IdempotencyConflict) as caught:
        producer.submit("y", idempotency_key="k")
    assert (caught.value.field, caught.value.request_id) == ("idempotency_key", first.request_id)
    assert producer.submit("x", idempotency_key="other").request_id != first.request_id


def test_a_repeat_attaches_though_the_queue_is_full(producer: Producer) -> None:
    first = producer.submit("x", idempotency_key="k")
    producer.submit_many(["a", "b", "c", "d"])
    assert producer.submit("x", idempotency_key="k").request_id == first.request_id
    with pytest.raises(QueueFull):
        producer.submit("x", idempotency_key="new")


def test_many_at_once_under_one_idempotency_key_are_one_request(redis_server: RedisServer, redis: Redis) -> None:
    barrier = threading.Barrier(8)

    def submit(_: int) -> str:
        with Producer(redis_server.url) as producer:
            barrier.wait(60)
            return producer.submit("x", idempotency_key="k").request_id

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(submit, range(8)))) == 1
    assert redis.llen(QUEUE) == 1


def test_a_repeat_heals_a_producer_that_died_before_it_enqueued(producer: Producer, redis: Redis) -> None:
    first = producer.submit("x", idempotency_key="k")
    redis.delete(QUEUE, keys.rq_job(first.request_id))
    producer.submit("x", idempotency_key="k")
    assert redis.lrange(QUEUE, 0, -1) == [first.request_id.encode()]


def test_a_key_whose_producer_died_before_it_created_is_used_again(producer: Producer, redis: Redis) -> None:
    dead = keys.new_request_id()
    redis.set(keys.idempotency("k"), dead, px=4_200_000)
    redis.set(keys.idempotency_mark("k"), dead, px=60_000)
    assert producer.submit("x", idempotency_key="k").request_id == dead


@pytest.mark.parametrize(("first_s", "second_s"), [(600, 5), (5, 600), (600, 600)])
def test_a_key_whose_request_is_gone_is_bound_anew(
    redis_server: RedisServer, redis: Redis, writer: Writer, first_s: int, second_s: int
) -> None:
    """An ID is never used twice, however long the key and the next request live."""
    settings = ProducerSettings(redis_url=SecretStr(redis_server.url), retention_s=1)
    with Producer(settings=settings) as producer:
        first = producer.submit("x", idempotency_key="k", deadline_s=first_s)
        writer.answer(writer.take() or "")
        wait_until(lambda: not redis.exists(keys.request(first.request_id)))
        second = producer.submit("x", idempotency_key="k", deadline_s=second_s)
        assert second.request_id != first.request_id
        assert producer.submit("x", idempotency_key="k", deadline_s=second_s).request_id == second.request_id


def test_a_try_whose_job_redis_refused_goes_on_with_the_next(make_redis_server: MakeRedisServer) -> None:
    """Redis ran full between the request and its job: the next try attached to a request that had been cancelled."""
    server = make_redis_server("--maxmemory-policy", "noeviction")
    with server.client() as redis, Producer(server.url) as producer:
        producer.submit("x")  # both scripts are known now

        class Filling(Pipeline):
            """Redis is full once a request was created."""

            def run(self, batch: Batch, *, atomic: bool = False) -> list[Any]:
                replies = super().run(batch, atomic=atomic)
                if any(isinstance(each, Call) and each.script.name == "create" for each in batch):
                    redis.config_set("maxmemory", 1)
                return replies

        filled = producer._driver._pipeline
        producer._driver._pipeline = Filling(producer._driver.servers.queue)
        with pytest.raises(RedisUnusable):
            producer.submit("x", idempotency_key="k")
        redis.config_set("maxmemory", 0)
        producer._driver._pipeline = filled
        again = producer.submit("x", idempotency_key="k")
        assert again.status().state == "queued"
        assert redis.lpos(keys.rq_queue(again.status().queue), again.request_id) is not None
