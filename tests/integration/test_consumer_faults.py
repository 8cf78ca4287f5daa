"""Consumers over what Redis and the network do to a stream: lost writes, dead connections, restarts."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from tests.readers import Background, texts
from tests.waiting import wait_until
from tests.writers import WEATHER, Writer, rewrite
from tokenrelay.producer import (
    Consumer,
    Producer,
    RedisUnusable,
    RequestError,
    StreamChanged,
)
from tokenrelay.shared.wire import keys

if TYPE_CHECKING:
    from redis import Redis

    from tests.conftest import MakeRedisServer
    from tokenrelay.producer import Generation


def test_a_rewritten_past_is_a_change(running: Generation, background: Background, redis: Redis) -> None:
    reader = background.start(lambda: list(running))
    rewrite(redis, running.request_id, 3, text=b"That")  # the last token is as it was
    with pytest.raises(StreamChanged, match="tokens 1 to 3 .* came out differently"):
        reader.result(60)


def test_a_past_that_changed_while_a_token_was_waited_for_is_a_change(
    running: Generation, background: Background, redis: Redis
) -> None:
    """The new token ends the wait, and what stands before it is looked at behind that."""
    reader = background.start(lambda: list(running))
    rewrite(redis, running.request_id, 3, text=b"That", more=True)
    with pytest.raises(StreamChanged, match="tokens 1 to 3 .* came out differently"):
        reader.result(60)


def test_a_past_that_came_out_the_same_is_no_change(
    running: Generation, writer: Writer, background: Background, redis: Redis
) -> None:
    reader = background.start(lambda: list(running))
    rewrite(redis, running.request_id, 3)
    writer.append(running.request_id, " and")
    writer.finish(running.request_id)
    assert texts(reader.result(60)) == ["It", " is", " sunny", " and"]


def test_a_shorter_past_is_waited_for_and_then_a_change(
    running: Generation, background: Background, redis: Redis
) -> None:
    reader = background.start(lambda: list(running))
    rewrite(redis, running.request_id, 2)
    redis.xadd(keys.stream(running.request_id), {"text": " rainy", "token": 203, "at_us": 1}, id="3-0")
    with pytest.raises(StreamChanged):
        reader.result(60)


def test_an_end_before_what_was_read_is_a_change(running: Generation, background: Background, redis: Redis) -> None:
    reader = background.start(lambda: list(running))
    rewrite(redis, running.request_id, 2)
    redis.hset(keys.request(running.request_id), "state", "completed")
    with pytest.raises(StreamChanged, match="ended before 3-0"):
        reader.result(60)
    with pytest.raises(RequestError, match="after: 9; .* has ended with 3 tokens"):
        list(running.tokens(after=9))  # nothing was read here: this may as well be a typing error


def test_killed_connections_cost_no_token(
    consumer: Consumer, writer: Writer, running: Generation, background: Background, redis: Redis
) -> None:
    handle = consumer.get(running.request_id)
    reader = background.start(lambda: list(handle))
    for text in (" and", " warm", "."):
        redis.client_kill_filter(_type="normal", skipme=True)
        writer.append(running.request_id, text)
        wait_until(lambda text=text: handle.text.endswith(text))  # type: ignore[misc]
    writer.finish(running.request_id)
    assert texts(reader.result(60)) == list(WEATHER)


def test_a_reader_outlasts_a_restart_of_redis(make_redis_server: MakeRedisServer) -> None:
    server = make_redis_server("--appendonly", "yes", "--appendfsync", "always")
    with Producer(server.url) as producer, server.client() as redis, ThreadPoolExecutor(1) as pool:
        writer = Writer(redis)
        writer.appear()
        generation = producer.submit("x")
        assert writer.take() == generation.request_id
        writer.claim(generation.request_id)
        writer.append(generation.request_id, "It")
        reader = pool.submit(list, generation)
        wait_until(lambda: generation.text == "It")
        server.kill()
        killed_at = time.monotonic()
        wait_until(lambda: time.monotonic() - killed_at > 1.5)  # down for longer than redis-py itself tries
        server.start()
        writer.append(generation.request_id, " is")
        writer.finish(generation.request_id)
        assert texts(reader.result(60)) == ["It", " is"]


def test_a_caller_with_little_time_waits_for_no_restart(make_redis_server: MakeRedisServer) -> None:
    server = make_redis_server()
    with Producer(server.url) as producer:
        generation = producer.submit("x")
        tokens = iter(generation.events())
        assert next(tokens).kind == "queued"
        server.kill()
        began = time.monotonic()
        with pytest.raises(RedisUnusable, match="is it running there"):
            generation.result(timeout_s=0.5)
        assert time.monotonic() - began < 20


def test_a_redis_that_never_answers_is_said_at_once() -> None:
    began = time.monotonic()
    with pytest.raises(RedisUnusable, match="start it, or set TOKENRELAY_REDIS_URL"):
        Consumer("redis://127.0.0.1:1/0").get(keys.new_request_id())
    assert time.monotonic() - began < 20
