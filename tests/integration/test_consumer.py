"""Following a stream of a real Redis: at any time, from any token, to an end in every case."""

from __future__ import annotations

import itertools
import statistics
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from tests.readers import Background, texts
from tests.redis_servers import is_before_redis_7
from tests.waiting import wait_until
from tests.writers import WEATHER, End, Writer
from tokenrelay.producer import (
    Consumer,
    Ended,
    GenerationExpired,
    Producer,
    RequestError,
    RequestNotFound,
    State,
    StreamExpired,
    StreamGap,
    StreamTimeout,
    Token,
)
from tokenrelay.shared.redis.connections import connect
from tokenrelay.shared.wire import keys

if TYPE_CHECKING:
    from redis import Redis

    from tests.conftest import MakeRedisServer
    from tests.redis_servers import RedisServer
    from tokenrelay.producer import Generation, ReadOnlyGeneration

CLAIMED = keys.claimed(keys.queue("weather", "default"))


def test_a_consumer_reads_while_it_is_written_and_again_when_it_is_over(
    consumer: Consumer, writer: Writer, running: Generation, background: Background
) -> None:
    handle = consumer.get(running.request_id)
    reader = background.start(lambda: list(handle))
    writer.append(running.request_id, " and")
    wait_until(lambda: handle.text == "It is sunny and")
    writer.append(running.request_id, " warm", ".")
    writer.finish(running.request_id)
    assert texts(reader.result(60)) == list(WEATHER)
    again = consumer.get(running.request_id)
    assert texts(list(again)) == list(WEATHER)
    assert [token.index for token in again.tokens(after=3)] == [4, 5, 6]
    assert list(again.tokens(after=6)) == []
    answer = again.result()
    assert (answer.text, answer.attempts, answer.usage.completion_tokens) == ("It is sunny and warm.", 1, 6)
    assert answer.timings.total_s is not None


def test_readers_from_everywhere_see_the_same_tokens(
    consumer: Consumer, writer: Writer, running: Generation, background: Background
) -> None:
    handle = consumer.get(running.request_id)
    readers = [background.start(lambda after=after: list(handle.tokens(after))) for after in (0, 0, 2, 3, 5)]  # type: ignore[misc]
    writer.append(running.request_id, " and", " warm", ".")
    writer.finish(running.request_id)
    whole, *others = (reader.result(60) for reader in readers)
    assert texts(whole) == list(WEATHER)
    assert others == [whole, whole[2:], whole[3:], whole[5:]]


def test_a_stream_longer_than_one_read_is_read_whole(consumer: Consumer, writer: Writer, running: Generation) -> None:
    for _ in range(12):
        writer.append(running.request_id, *["x"] * 100)
    writer.finish(running.request_id)
    handle = consumer.get(running.request_id)
    assert [token.index for token in handle] == list(range(1, 1204))
    assert handle.result().usage.completion_tokens == 1203


def test_events_come_in_order_and_do_not_raise(
    producer: Producer, writer: Writer, running: Generation, redis: Redis
) -> None:
    writer.release(running.request_id)
    other = Writer(redis, "second")
    assert other.claim(running.request_id) == 4
    other.append(running.request_id, " and")
    running.cancel()
    assert [event.kind for event in running.events()] == ["queued", "started", "migrated", "cancelled"]
    entries = [str(entry.entry_id) for entry in running.entries(after=3)]
    assert entries == ["3-1", "4-0", "4-1"]


def test_a_blocked_reader_sees_a_token_at_once(
    consumer: Consumer, writer: Writer, running: Generation, background: Background
) -> None:
    handle, delays, seen = consumer.get(running.request_id), list[float](), threading.Event()

    def read() -> list[Token]:
        tokens = []
        for token in handle:
            delays.append(time.time() - token.at_us / 1e6)  # the server runs on this machine's clock
            tokens.append(token)
            seen.set()
        return tokens

    reader = background.start(read)
    for number in range(30):
        wait_until(lambda expected=3 + number: len(delays) == expected)  # type: ignore[misc]
        writer.append(running.request_id, "x")
    writer.finish(running.request_id)
    reader.result(60)
    assert statistics.median(delays[3:]) < 0.7  # a reader that polls would take its block time, a second


def test_a_stream_that_is_deleted_under_a_reader_is_said(
    consumer: Consumer, running: Generation, background: Background, redis: Redis
) -> None:
    handle = consumer.get(running.request_id)
    reader = background.start(lambda: list(handle))
    began = time.monotonic()
    redis.delete(keys.request(running.request_id), keys.stream(running.request_id), CLAIMED)
    with pytest.raises(StreamExpired, match="retention"):
        reader.result(60)
    assert time.monotonic() - began < 20
    with pytest.raises(StreamExpired):
        handle.result()


@pytest.mark.parametrize("kind", ["request", "stream"])
def test_half_a_request_is_a_gone_one(running: Generation, redis: Redis, kind: str) -> None:
    redis.delete(getattr(keys, kind)(running.request_id), CLAIMED)
    with pytest.raises(StreamExpired):
        list(running)


def test_a_missing_token_is_a_gap(writer: Writer, running: Generation, redis: Redis) -> None:
    writer.finish(running.request_id)
    redis.xdel(keys.stream(running.request_id), "2-0")
    with pytest.raises(StreamGap):
        list(running)
    assert [token.index for token in running.tokens(after=2)] == [3]


def test_past_the_deadline_a_producer_ends_the_request(producer: Producer, redis: Redis, writer: Writer) -> None:
    generation = producer.submit("x", deadline_s=0.3)
    began = time.monotonic()
    with pytest.raises(GenerationExpired):
        list(generation)
    assert time.monotonic() - began < 20
    assert generation.status().state == State.EXPIRED
    assert redis.hget(keys.rq_job(generation.request_id), "status") == b"failed"
    assert writer.take() is None
    with pytest.raises(GenerationExpired):
        generation.result()


def test_past_the_deadline_a_started_request_is_an_incomplete_answer(producer: Producer, writer: Writer) -> None:
    generation = producer.submit("x", deadline_s=0.5)
    assert writer.take() == generation.request_id
    writer.claim(generation.request_id)
    writer.append(generation.request_id, "It", " is")
    answer = generation.result(timeout_s=60)
    assert (answer.state, answer.finish_reason, answer.text) == (State.INCOMPLETE, "deadline", "It is")
    assert writer.append(generation.request_id, " sunny") == "DONE"


def test_past_the_deadline_a_consumer_reports_it_and_writes_nothing(
    producer: Producer, consumer: Consumer, redis: Redis, writer: Writer
) -> None:
    queued, started = producer.submit("x", deadline_s=0.2), producer.submit("y", deadline_s=0.2)
    writer.take(), writer.take()
    writer.claim(started.request_id)
    writer.append(started.request_id, "It")
    handles = [consumer.get(each.request_id) for each in (queued, started)]
    with ThreadPoolExecutor(2) as pool:
        nothing, partial = [pool.submit(lambda handle=handle: list(handle.entries())) for handle in handles]  # type: ignore[misc]
        end = nothing.result(60)[-1]
        assert isinstance(end, Ended)
        assert (end.state, end.finish_reason, str(end.entry_id)) == (State.EXPIRED, "deadline", "0-2")
        end = partial.result(60)[-1]
        assert isinstance(end, Ended)
        assert (end.state, end.usage.completion_tokens, end.usage.prompt_tokens) == (State.INCOMPLETE, 1, 3)
    with pytest.raises(GenerationExpired):
        list(handles[0])
    with pytest.raises(GenerationExpired):
        handles[0].result()
    assert handles[1].result().text == "It"
    assert [handle.status().state for handle in handles] == [State.EXPIRED, State.INCOMPLETE]
    assert redis.hget(keys.request(queued.request_id), "state") == b"queued"
    assert redis.xlen(keys.stream(queued.request_id)) == 1


def test_a_timeout_ends_the_wait_and_nothing_else(running: Generation, writer: Writer) -> None:
    began = time.monotonic()
    with pytest.raises(StreamTimeout) as caught:
        running.result(timeout_s=0.2)
    assert 0.2 <= time.monotonic() - began < 20
    assert caught.value.request_id == running.request_id
    with pytest.raises(StreamTimeout):
        running.result(timeout_s=0)
    assert running.status().state == State.IN_PROGRESS
    writer.append(running.request_id, " and", " warm", ".")
    writer.finish(running.request_id)
    assert running.result(timeout_s=0).text == "It is sunny and warm."


def test_a_broken_off_iteration_starts_over_or_goes_on(running: Generation, writer: Writer) -> None:
    assert texts(list(itertools.islice(running, 2))) == ["It", " is"]
    writer.finish(running.request_id)
    assert texts(list(running)) == ["It", " is", " sunny"]
    assert texts(list(running.tokens(after=2))) == [" sunny"]


def test_held_back_text_is_in_the_answer(running: Generation, writer: Writer) -> None:
    writer.finish(running.request_id, End(state="incomplete", finish_reason="length", text=" 🌞"))
    assert running.result().text == "It is sunny 🌞"
    assert running.text == "It is sunny 🌞"


def test_what_is_no_request_is_said(consumer: Consumer, producer: Producer, running: Generation) -> None:
    for client in (consumer, producer):
        with pytest.raises(RequestNotFound, match="retention"):
            client.get(keys.new_request_id())
        for wrong in ("", "short", "x" * 65, "a b" * 10, "*" * 22):
            with pytest.raises(RequestError, match="request_id"):
                client.get(wrong)
    with pytest.raises(RequestError, match="after"):
        list(running.tokens(after=-1))


def test_a_read_only_user_can_follow(make_redis_server: MakeRedisServer) -> None:
    server = make_redis_server()
    rights = ["+xread", "+xrange", "+xlen", "+hmget", "+time", "+ping", "+hello", "+auth"]
    rights += ["+client|setname", "+client|id"]
    with server.client() as redis, Producer(server.url) as producer:
        rights.append("~tokenrelay:*" if is_before_redis_7(redis) else "%R~tokenrelay:*")
        redis.execute_command("ACL", "SETUSER", "reader", "on", ">pw", *rights)
        generation = producer.submit("x")
        with Consumer(server.url.replace("//", "//reader:pw@")) as consumer:
            handle: ReadOnlyGeneration = consumer.get(generation.request_id)
            with pytest.raises(StreamTimeout):
                handle.result(timeout_s=1.2)  # long enough for a look, which may not see RQ's keys
            writer = Writer(redis)
            assert writer.take() == generation.request_id
            writer.answer(generation.request_id)
            assert texts(list(handle)) == list(WEATHER)


@pytest.mark.one_server
def test_a_short_socket_timeout_is_no_trouble(redis_server: RedisServer, running: Generation, writer: Writer) -> None:
    with connect(redis_server.url) as connection:
        connection.connection_pool.connection_kwargs["socket_timeout"] = 0.2
        handle = Consumer(connection=connection).get(running.request_id)
        with pytest.raises(StreamTimeout):
            handle.result(timeout_s=0.7)
        writer.finish(running.request_id)
        assert handle.result().text == "It is sunny"
