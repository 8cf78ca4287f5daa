"""Two servers, one for each plane: nothing of a request on the queues' server, nothing of RQ on the streams'."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from redis import Connection
from redis.asyncio import Connection as AsyncConnection
from redis.exceptions import ConnectionError

from tests.engines import CountingEngine
from tests.gateway.live import LiveGateway
from tests.waiting import wait_until
from tests.workers import MODEL, VOCABULARY, running_worker, served
from tokenrelay.cli.ops.diagnosis import diagnose
from tokenrelay.cli.ops.system import read_system
from tokenrelay.producer import AsyncConsumer, AsyncProducer, Consumer, Producer
from tokenrelay.producer._core.drivers import Driver
from tokenrelay.shared.errors import GenerationCancelled, GenerationExpired, RedisUnusable, SettingsError
from tokenrelay.shared.redis.connections import connect_async
from tokenrelay.shared.settings import ProducerSettings, WorkerSettings
from tokenrelay.shared.wire import keys
from tokenrelay.shared.wire.keys import Plane, plane_of
from tokenrelay.worker.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import MakeRedisServer
    from tests.redis_servers import RedisServer


@dataclass(frozen=True)
class Two:
    """The servers of both planes."""

    queue: RedisServer
    token: RedisServer

    def producer(self) -> Producer:
        return Producer(self.queue.url, streams_url=self.token.url)

    def keys(self) -> dict[Plane, set[Plane]]:
        """The planes of the keys that each server holds."""
        found: dict[Plane, set[Plane]] = {}
        for plane, server in ((Plane.QUEUE, self.queue), (Plane.TOKEN, self.token)):
            with server.client() as client:
                found[plane] = {plane_of(key) for key in client.scan_iter(count=1000)}
        return found


@pytest.fixture
def two(make_redis_server: MakeRedisServer) -> Two:
    return Two(make_redis_server("--appendonly", "yes"), make_redis_server("--appendonly", "yes"))


@pytest.fixture
def worker(two: Two) -> Iterator[Any]:
    with running_worker(two.queue.url, streams_url=two.token.url, lease_ms=1000) as worker:
        yield worker


def test_a_request_lives_on_its_planes_servers_alone(two: Two, worker: Any) -> None:
    with two.producer() as producer:
        generations = producer.submit_many(["w1", "w2"], model=MODEL, max_new_tokens=8)
        keyed = producer.submit("w3", model=MODEL, max_new_tokens=8, idempotency_key="one")
        assert (
            producer.submit("w3", model=MODEL, max_new_tokens=8, idempotency_key="one").request_id == keyed.request_id
        )
        answers = [generation.result(timeout_s=30) for generation in (*generations, keyed)]
        assert [len(answer.tokens) for answer in answers] == [8, 8, 8]
        assert two.keys() == {Plane.QUEUE: {Plane.QUEUE}, Plane.TOKEN: {Plane.TOKEN}}
        with Consumer(two.queue.url, streams_url=two.token.url) as consumer:
            again = consumer.get(keyed.request_id)
            assert [token.text for token in again.tokens(after=5)] == [token.text for token in answers[2].tokens[5:]]
        with two.queue.client() as client:
            wait_until(lambda: client.hget(keys.rq_job(keyed.request_id), "status") == b"finished")


def test_a_cancel_reaches_the_worker_over_the_token_plane(two: Two, worker: Any) -> None:
    with two.producer() as producer:
        generation = producer.submit("w1", model=MODEL, max_new_tokens=100_000, ignore_eos=True)
        next(iter(generation))
        assert generation.cancel()
        with pytest.raises(GenerationCancelled):
            generation.result(timeout_s=30)
        wait_until(lambda: not worker.threads.status.held)
        with two.queue.client() as client:
            wait_until(lambda: client.hget(keys.rq_job(generation.request_id), "status") == b"canceled")


@pytest.mark.anyio
async def test_asyncio_readers_and_a_gateway(two: Two) -> None:
    with running_worker(two.queue.url, streams_url=two.token.url):
        async with AsyncProducer(two.queue.url, streams_url=two.token.url) as producer:
            asked = [producer.submit("w1", model=MODEL, max_new_tokens=8) for _ in range(20)]
            answers = await asyncio.gather(*[each.result(30) for each in await asyncio.gather(*asked)])
            assert [len(answer.tokens) for answer in answers] == [8] * 20
        gateway = await asyncio.to_thread(LiveGateway, two.queue.url, streams_url=two.token.url)
        try:
            async with httpx.AsyncClient(base_url=gateway.url, timeout=60) as http:
                body = {"model": MODEL, "prompt": "w1", "max_tokens": 8}
                answer = await http.post("/v1/completions", json=body)
                assert answer.json()["usage"]["completion_tokens"] == 8
                assert (await http.get("/health")).status_code == 200
                two.token.stop()
                assert (await http.get("/health")).status_code == 503
                two.token.start()
        finally:
            await asyncio.to_thread(gateway.stop)
    assert two.keys() == {Plane.QUEUE: {Plane.QUEUE}, Plane.TOKEN: {Plane.TOKEN}}


@pytest.mark.parametrize("killed", list(Plane))
def test_a_planes_server_that_dies_costs_no_token(two: Two, worker: Any, killed: Plane) -> None:
    """A reader goes on while the queues' server is away; and once the streams' server is back."""
    server = two.token if killed is Plane.TOKEN else two.queue
    with two.producer() as producer:
        generation = producer.submit("w1", model=MODEL, max_new_tokens=200, ignore_eos=True)
        tokens = generation.tokens()
        read = [next(tokens) for _ in range(3)]
        server.kill()
        if killed is Plane.TOKEN:
            server.start()
        read += list(tokens)
        server.start()
        assert [token.index for token in read] == list(range(1, 201))
        with two.queue.client() as client:
            wait_until(lambda: client.hget(keys.rq_job(generation.request_id), "status") == b"finished")


def test_what_a_dead_worker_held_goes_on(two: Two) -> None:
    """Its lease is on one server, its claim on the other."""
    with two.producer() as producer:
        with running_worker(two.queue.url, streams_url=two.token.url, drain_timeout_s=0) as first:
            generation = producer.submit("w1", model=MODEL, max_new_tokens=2000, ignore_eos=True)
            next(iter(generation))
            wait_until(lambda: len(first.threads.status.held) == 1)
        assert generation.status().attempts == 1
        with running_worker(two.queue.url, streams_url=two.token.url):
            assert len(generation.result(timeout_s=60).tokens) == 2000
        assert generation.status().attempts == 2


def test_an_error_names_the_server_and_the_setting(two: Two, make_redis_server: MakeRedisServer) -> None:
    evicting = make_redis_server("--maxmemory-policy", "allkeys-lru")
    with (
        Producer(two.queue.url, streams_url=evicting.url) as producer,
        pytest.raises(RedisUnusable, match=r"TOKENRELAY_STREAMS_URL.*allkeys-lru"),
    ):
        producer.submit("x")
    two.token.stop()
    with two.producer() as producer, pytest.raises(RedisUnusable, match=rf"127\.0\.0\.1:{two.token.port}.*STREAMS_URL"):
        producer.get("r" * 22)
    two.token.start()


def test_the_settings_streams_url_holds_where_none_is_given(two: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENRELAY_STREAMS_URL", two.token.url)
    assert ProducerSettings.from_environment(redis_url=two.queue.url).urls == (two.queue.url, two.token.url)
    with Producer(two.queue.url) as producer:
        request_id = producer.submit("x").request_id
        with two.token.client() as client:
            assert client.exists(keys.request(request_id))
        producer.get(request_id).cancel()


def test_one_client_serves_both_planes_on_one_server(two: Two) -> None:
    """Nothing costs more: one pool, one connection."""
    with Producer(two.queue.url) as producer:
        servers = producer._driver.servers
        assert servers.queue is servers.token
        assert servers.planes == (Plane.QUEUE,)


def test_what_is_wrong_with_the_streams_server_is_found(two: Two) -> None:
    with two.queue.client() as queue, two.token.client() as token:
        driver = Driver(queue, token)
        assert driver.run(read_system()).streams_server is not None
        assert Driver(queue).run(read_system()).streams_server is None
        token.config_set("maxmemory-policy", "allkeys-lru")
        (finding,) = diagnose(driver.run(read_system()))
        assert (finding.code, "the Redis of the streams: Redis has" in finding.message) == ("eviction_policy", True)


def test_a_reader_of_a_queued_request_waits_while_the_queues_server_is_away(two: Two) -> None:
    """Whether anybody serves it can't be said then; that is no reason to stop."""
    with two.producer() as producer:
        generation = producer.submit("x", model=MODEL, deadline_s=3.0)
        two.queue.kill()
        with pytest.raises(GenerationExpired):
            generation.result(timeout_s=60)
        two.queue.start()
        with running_worker(two.queue.url, streams_url=two.token.url), two.queue.client() as client:
            wait_until(lambda: client.hget(keys.rq_job(generation.request_id), "status") == b"failed")


@pytest.mark.parametrize("split", [False, True], ids=["connection", "streams_connection"])
def test_connections_that_are_given_hold_for_clients_and_workers_alike(
    two: Two, monkeypatch: pytest.MonkeyPatch, split: bool
) -> None:
    """Whatever the environment says: a connection is both planes', unless the streams' is given too."""
    monkeypatch.setenv("TOKENRELAY_STREAMS_URL", "redis://127.0.0.1:1/0" if split else two.token.url)
    with two.queue.client() as queue, two.token.client() as token:
        given: dict[str, Any] = {"connection": queue, **({"streams_connection": token} if split else {})}
        generation = Producer(**given).submit("w1", model=MODEL, max_new_tokens=2)
        assert (token if split else queue).exists(keys.request(generation.request_id))
        made = served(CountingEngine(vocabulary=VOCABULARY))
        assert Worker(WorkerSettings.from_environment(), made, **given).work(burst=True)
        assert Consumer(**given).get(generation.request_id).result(60).usage.completion_tokens == 2
    on_queue, on_token = ({Plane.QUEUE}, {Plane.TOKEN}) if split else ({*Plane}, set[Plane]())
    assert two.keys() == {Plane.QUEUE: on_queue, Plane.TOKEN: on_token}


@pytest.mark.anyio
async def test_connections_that_are_given_hold_on_asyncio(two: Two) -> None:
    async with connect_async(two.queue.url) as queue, connect_async(two.token.url) as token:
        generation = await AsyncProducer(connection=queue, streams_connection=token).submit("x")
        assert await token.exists(keys.request(generation.request_id))
        consumer = AsyncConsumer(connection=queue, streams_connection=token)
        assert (await consumer.get(generation.request_id)).request_id == generation.request_id
        with pytest.raises(SettingsError, match="give connection"):
            AsyncConsumer(streams_connection=token)


class Unclosable(Connection):
    """Fails after it has closed."""

    def disconnect(self, *arguments: Any) -> None:
        super().disconnect(*arguments)  # type: ignore[no-untyped-call]
        raise ConnectionError("the first")


class AsyncUnclosable(AsyncConnection):
    """Fails after it has closed."""

    async def disconnect(self, *arguments: Any, **options: Any) -> None:
        await super().disconnect(*arguments, **options)
        raise ConnectionError("the first")


def test_an_error_at_one_servers_close_leaves_none_open(two: Two) -> None:
    producer = two.producer()
    producer._driver.servers.queue.connection_pool.connection_class = Unclosable
    producer.submit("x")
    assert clients_of(two.token) == 1
    with pytest.raises(ConnectionError, match="the first"):
        producer.close()
    wait_until(lambda: clients_of(two.token) == 0)


@pytest.mark.anyio
async def test_an_error_at_one_servers_aclose_leaves_none_open(two: Two) -> None:
    producer = AsyncProducer(two.queue.url, streams_url=two.token.url)
    producer._driver.servers.queue.connection_pool.connection_class = AsyncUnclosable
    await producer.submit("x")
    assert clients_of(two.token) == 1
    with pytest.raises(ConnectionError, match="the first"):
        await producer.aclose()
    wait_until(lambda: clients_of(two.token) == 0)


def clients_of(server: RedisServer) -> int:
    """How many clients are connected, the one that asks apart."""
    with server.client() as client:
        return len(client.client_list()) - 1
