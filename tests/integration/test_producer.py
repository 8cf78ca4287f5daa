"""Submitting to a real Redis: what is written, what is refused, who may share a producer."""

from __future__ import annotations

import itertools
import json
import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from redis.exceptions import ConnectionError
from rq import Queue
from rq.job import Job
from rq.serializers import JSONSerializer

from tests.redis_servers import is_before_redis_7
from tests.two_planes import pipeline_on
from tests.writers import WEATHER, End, Writer, serving
from tokenrelay.producer import (
    GenerationCancelled,
    GenerationFailed,
    NoWorkerWarning,
    Producer,
    ProducerSettings,
    QueueFull,
    RedisUnusable,
    SettingsError,
    State,
    StreamTimeout,
)
from tokenrelay.producer._core.drivers import Driver
from tokenrelay.producer._core.planning import plan_many, plan_request
from tokenrelay.producer._core.steps import RoundTrip
from tokenrelay.producer._core.submission import Submitter
from tokenrelay.shared.redis.commands import Call
from tokenrelay.shared.redis.connections import connect
from tokenrelay.shared.wire import keys
from tokenrelay.shared.wire.entries import text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from redis import Redis

    from tests.conftest import MakeRedisServer
    from tests.redis_servers import RedisServer
    from tokenrelay.producer._core.steps import Answered, Item

SETTINGS = ProducerSettings(max_queue_depth=5)
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


def job_of(redis: Redis, request_id: str) -> Job:
    return Job.fetch(request_id, connection=redis, serializer=JSONSerializer)


def test_a_request_whose_job_was_deleted_through_rq_is_cancelled(producer: Producer, redis: Redis) -> None:
    generation = producer.submit("x")
    Queue("tokenrelay.weather.default", connection=redis, serializer=JSONSerializer).empty()  # type: ignore[no-untyped-call]
    with pytest.raises(GenerationCancelled) as cancelled:
        generation.result(timeout_s=60)
    assert cancelled.value.answer.cancelled_by == "rq"


def test_a_submitted_request_is_a_stream_and_an_rq_job_from_the_first_moment(producer: Producer, redis: Redis) -> None:
    generation = producer.submit("Good day", priority="high", metadata={"user": "é"}, deadline_s=30)
    request = redis.hgetall(keys.request(generation.request_id))
    assert json.loads(request[b"request"])["prompt"] == "Good day"
    assert [event.kind for event in itertools.islice(generation.events(), 1)] == ["queued"]
    job = job_of(redis, generation.request_id)
    assert (job.func_name, job.args, job.origin) == (
        keys.JOB_FUNCTION,
        [generation.request_id],
        "tokenrelay.weather.high",
    )
    assert (job.get_status(), job.result_ttl, job.failure_ttl) == ("queued", 3600, 3600)
    assert not any("Good day" in text(value) for value in redis.hvals(keys.rq_job(generation.request_id)))
    assert 3600 < redis.ttl(keys.rq_job(generation.request_id)) <= 3630
    status = generation.status()
    assert (status.state, status.tokens, status.attempts, status.metadata) == (State.QUEUED, 0, 0, {"user": "é"})
    assert 29 < status.seconds_left <= 30


def test_the_settings_come_from_the_environment(redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENRELAY_REDIS_URL", redis_server.url)
    monkeypatch.setenv("TOKENRELAY_MODEL", "other")
    with Producer() as producer:
        assert producer.submit("x").status().queue == "tokenrelay.other.default"


@pytest.mark.one_server
def test_a_connection_of_the_callers_is_used_and_left_open(redis_server: RedisServer) -> None:
    for query in ("", "?decode_responses=1", "?protocol=3", "?protocol=2"):
        with connect(redis_server.url + query) as connection:
            with Producer(connection=connection) as producer:
                generation = producer.submit("x")
                with redis_server.client() as client:
                    writer = Writer(client)
                    request_id = writer.take()
                    assert request_id == generation.request_id
                    writer.answer(request_id)
                assert generation.result(timeout_s=60).text == "It is sunny and warm."
                assert [token.index for token in generation.tokens(after=4)] == [5, 6]
            assert connection.ping()


def test_url_and_connection_together_are_refused(redis: Redis) -> None:
    with pytest.raises(SettingsError, match="both given"):
        Producer("redis://x", connection=redis)


def test_a_full_queue_takes_nothing_of_a_batch(producer: Producer, redis: Redis) -> None:
    producer.submit_many(["a", "b", "c"])
    before = sorted(redis.keys())
    with pytest.raises(QueueFull) as caught:
        producer.submit_many(["d", "e", "f"])
    error = caught.value
    assert (error.depth, error.limit, error.queue) == (3, 5, "tokenrelay.weather.default")
    assert error.retry_after_s > 0
    assert sorted(redis.keys()) == before
    assert len(producer.submit_many(["d", "e"])) == 2
    with pytest.raises(QueueFull, match="at most 5 may"):
        producer.submit("f")
    assert redis.llen(QUEUE) == 5


@pytest.mark.one_server
def test_a_full_queue_is_not_written_to_again_and_again(producer: Producer, redis: Redis) -> None:
    """Only the first refusal creates a request, which it cancels. The depth is asked for before the next ones."""
    producer.submit_many(["a", "b", "c", "d"])
    producer.submit("e")  # this reply said that the queue is full now
    before = sorted(redis.keys())
    for _ in range(3):
        with pytest.raises(QueueFull):
            producer.submit("f")
    assert sorted(redis.keys()) == before


def test_a_batch_that_others_overtook_is_taken_back(producer: Producer, redis: Redis) -> None:
    plans = plan_many(["a", "b", "c"], {}, SETTINGS)
    full = SETTINGS.model_copy(update={"max_queue_depth": 1})
    with pytest.raises(QueueFull):
        Driver(*pipeline_on(redis).servers).run(Submitter(full).write(plans))
    assert redis.llen(QUEUE) == 0
    for plan in plans:
        assert producer.get(plan.request_id).status().state == State.CANCELLED


def test_a_batch_comes_in_order(producer: Producer, redis: Redis) -> None:
    generations = producer.submit_many(["a", {"prompt": "b", "seed": 2}, "c"], seed=1)
    assert redis.lrange(QUEUE, 0, -1) == [generation.request_id.encode() for generation in generations]
    seeds = [json.loads(redis.hget(keys.request(each.request_id), "request") or b"")["seed"] for each in generations]
    assert seeds == [1, 2, 1]


class LosingDriver(Driver):
    """Loses the first reply of each script of a submission."""

    def __init__(self, redis: Redis) -> None:
        super().__init__(redis)
        self.lost: list[str] = []

    def _answer(self, item: Item) -> Answered:
        answered = super()._answer(item)
        scripts = (
            [call.script.name for call in item.batch if isinstance(call, Call)] if isinstance(item, RoundTrip) else []
        )
        if scripts and scripts[0] not in self.lost:
            self.lost.append(scripts[0])
            return ConnectionError("reset by peer")
        return answered


@pytest.mark.one_server
def test_a_lost_reply_enqueues_nothing_twice(redis: Redis) -> None:
    plan = plan_request({"prompt": "x"}, SETTINGS)
    driver = LosingDriver(redis)
    driver.run(Submitter(SETTINGS).submit(plan))
    assert driver.lost == ["create", "enqueue"]
    assert redis.lrange(QUEUE, 0, -1) == [plan.request_id.encode()]
    assert redis.xlen(keys.stream(plan.request_id)) == 1


def test_cancelling_a_queued_request_takes_it_from_the_queue(producer: Producer, redis: Redis, writer: Writer) -> None:
    generation = producer.submit("x")
    assert generation.cancel() is True
    assert generation.cancel() is False
    assert redis.llen(QUEUE) == 0
    assert job_of(redis, generation.request_id).get_status() == "canceled"
    assert writer.take() is None
    with pytest.raises(GenerationCancelled) as caught:
        generation.result()
    assert (caught.value.text, caught.value.answer.cancelled_by) == ("", "producer")


def test_cancelling_a_running_request_stops_its_worker(producer: Producer, writer: Writer) -> None:
    generation = producer.submit("x")
    assert writer.take() == generation.request_id
    writer.claim(generation.request_id)
    writer.append(generation.request_id, "It", " is")
    tokens = iter(generation)
    assert next(tokens).text == "It"
    assert producer.get(generation.request_id).cancel() is True
    assert writer.append(generation.request_id, " sunny") == "DONE"
    assert next(tokens).text == " is"
    with pytest.raises(GenerationCancelled) as caught:
        next(tokens)
    assert (caught.value.text, len(caught.value.answer.tokens)) == ("It is", 2)
    assert generation.status().cancelled_by == "producer"


def test_leaving_a_stream_early_cancels_and_leaving_an_iteration_does_not(producer: Producer, writer: Writer) -> None:
    with producer.stream("x") as short:
        assert writer.take() == short.request_id
        writer.claim(short.request_id)
        writer.append(short.request_id, "It")
        for _ in short:
            break
        assert short.status().state == State.IN_PROGRESS
    assert short.status().state == State.CANCELLED
    with producer.stream("x") as whole:
        assert writer.take() == whole.request_id
        writer.answer(whole.request_id)
    assert whole.result().state == State.COMPLETED


def test_a_model_that_nobody_serves_is_warned_of_within_two_seconds(producer: Producer, redis: Redis) -> None:
    redis.sadd(keys.rq_workers(keys.queue("weather", "default")), keys.rq_worker("dead"))
    generation = producer.submit("x")
    with pytest.warns(NoWorkerWarning, match="'weather'") as caught:  # noqa: PT031 - once, over both
        for timeout_s in (2, 1.5):
            with pytest.raises(StreamTimeout):
                generation.result(timeout_s=timeout_s)
            assert len(caught) == 1  # after the first 2 s already
    assert [warning.filename for warning in caught] == [__file__]
    assert generation.status().state == State.QUEUED


def test_a_busy_model_is_not_warned_of(producer: Producer, writer: Writer) -> None:
    with pytest.raises(StreamTimeout, match="keeps running"):
        producer.submit("x").result(timeout_s=1.5)


def test_threads_share_a_producer(redis_server: RedisServer, producer: Producer) -> None:
    def ask(number: int) -> tuple[str, list[int]]:
        generation = producer.submit(f"question {number}")
        return "".join(token.text for token in generation), [token.index for token in generation]

    with serving(redis_server.url), ThreadPoolExecutor(5) as pool:
        answers = list(pool.map(ask, range(20)))
    assert answers == [("".join(WEATHER), list(range(1, 7)))] * 20


def test_a_forked_child_reads_and_submits_on_connections_of_its_own(
    producer: Producer, redis: Redis, writer: Writer
) -> None:
    generation = producer.submit("x")
    assert writer.take() == generation.request_id
    writer.claim(generation.request_id)
    writer.append(generation.request_id, *WEATHER)
    tokens = iter(generation)
    next(tokens)  # the parent's pool has an open connection now
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            texts = [next(tokens).text for _ in range(5)]
            told = {"texts": texts, "submitted": producer.submit("from the child").request_id}
            os.write(write_end, json.dumps(told).encode())
        finally:
            os._exit(0)
    os.close(write_end)
    mine = [next(tokens).text for _ in range(5)]
    with os.fdopen(read_end) as pipe:
        told = json.load(pipe)
    os.waitpid(child, 0)
    assert told["texts"] == mine == list(WEATHER[1:])
    assert redis.lrange(QUEUE, 0, -1) == [told["submitted"].encode()]
    writer.finish(generation.request_id)
    assert generation.result().text == "It is sunny and warm."


def test_an_unreachable_redis_is_said_in_one_line() -> None:
    with pytest.raises(RedisUnusable, match=r"127\.0\.0\.1:1: .*is it running there") as caught:
        Producer("redis://127.0.0.1:1/0").submit("x")
    assert "\n" not in caught.value.message


def test_a_wrong_password_is_said(make_redis_server: MakeRedisServer) -> None:
    server = make_redis_server(password="secret")
    for url in (server.url.replace("secret", "wrong"), server.url.replace(":secret@", "")):
        with pytest.raises(RedisUnusable, match="check user and password"):
            Producer(url).submit("x")


def test_a_replica_is_refused(redis_server: RedisServer, make_redis_server: MakeRedisServer) -> None:
    server = make_redis_server("--replicaof", "127.0.0.1", str(redis_server.port))
    with pytest.raises(RedisUnusable, match="URL of its primary"):
        Producer(server.url).submit("x")


def test_a_redis_that_evicts_is_refused(make_redis_server: MakeRedisServer) -> None:
    server = make_redis_server("--maxmemory", "50mb", "--maxmemory-policy", "volatile-lru")
    with pytest.raises(RedisUnusable, match="noeviction"):
        Producer(server.url).submit("x")
    with server.client() as client:
        assert client.dbsize() == 0


def test_a_full_redis_takes_nothing(make_redis_server: MakeRedisServer) -> None:
    server = make_redis_server()
    with server.client() as client, Producer(server.url) as producer:
        generation = producer.submit("x")
        used = int(client.info("memory")["used_memory"])
        client.config_set("maxmemory", used)
        with pytest.raises(RedisUnusable, match="Redis is full"):
            producer.submit_many(["y" * 10_000] * 100)
        assert client.lrange(QUEUE, 0, -1) == [generation.request_id.encode()]
        if is_before_redis_7(client):  # which lets no script write then, not even one that frees memory
            client.config_set("maxmemory", 0)
        assert generation.cancel() is True
        client.config_set("maxmemory", 0)


def test_a_user_without_info_may_submit(make_redis_server: MakeRedisServer) -> None:
    server = make_redis_server()
    with server.client() as client:
        client.execute_command("ACL", "SETUSER", "app", "on", ">pw", "~*", "&*", "+@all", "-info")
    with Producer(server.url.replace("//", "//app:pw@")) as producer:
        assert producer.submit("x").status().state == State.QUEUED


def test_failed_requests_tell_code_and_partial_text(producer: Producer, writer: Writer) -> None:
    generation = producer.submit("x")
    assert writer.take() == generation.request_id
    writer.answer(generation.request_id, ("It",), End("failed", "error", " is", "prompt_too_long", "too long"))
    for read in (lambda: list(generation.tokens(after=1)), generation.result):
        with pytest.raises(GenerationFailed, match="too long") as caught:
            read()
        assert (caught.value.code, caught.value.text) == ("prompt_too_long", "It is")
    assert [event.kind for event in generation.events()] == ["queued", "started", "failed"]
