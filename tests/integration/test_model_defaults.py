"""What a model's own configuration says of sampling, where a request says nothing."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from shutil import copytree
from typing import TYPE_CHECKING, Any, Final

import pytest
from pydantic import SecretStr

from tests.gateway.live import LiveGateway
from tests.relay import CountingRelay
from tests.workers import MODEL, running_worker
from tokenrelay.producer import AsyncProducer, Producer, RedisUnusable
from tokenrelay.producer._core.drivers import Driver
from tokenrelay.producer._core.model_defaults import MAX_KNOWN, ModelDefaults
from tokenrelay.producer._core.steps import SingleFlight
from tokenrelay.shared.settings import WorkerSettings
from tokenrelay.shared.wire import keys
from tokenrelay.worker.models import weather_model_path
from tokenrelay.worker.serving.model import serve

if TYPE_CHECKING:
    from redis import Redis

    from tests.conftest import MakeRedisServer
    from tests.redis_servers import RedisServer

OWN: Final = {"temperature": 0.25, "top_k": 7}
BODIES: Final[dict[str, dict[str, Any]]] = {
    "/requests": {"prompt": "w1"},
    "/v1/completions": {"prompt": "w1"},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "w1"}]},
}
ASK: Final[dict[str, Any]] = {"model": MODEL, "max_new_tokens": 2}


def sampling(redis: Redis, request_id: str) -> tuple[float, int, float]:
    body: Any = redis.hget(keys.request(request_id), "request")
    request = json.loads(body)
    return request["temperature"], request["top_k"], request["top_p"]


def test_they_are_written_into_a_request_that_says_nothing(redis_server: RedisServer, redis: Redis) -> None:
    with running_worker(redis_server.url, defaults=OWN), Producer(url=redis_server.url) as producer:
        assert sampling(redis, producer.submit("w1", **ASK).request_id) == (0.25, 7, 1.0)
        assert sampling(redis, producer.submit("w1", temperature=1.0, **ASK).request_id) == (1.0, 7, 1.0)
        assert sampling(redis, producer.submit("w1", top_k=0, top_p=0.5, **ASK).request_id) == (0.25, 0, 0.5)
        many = producer.submit_many(["w1", {"prompt": "w2", "temperature": 2.0}], **ASK)
        assert [sampling(redis, one.request_id)[0] for one in many] == [0.25, 2.0]


@pytest.mark.anyio
async def test_they_hold_on_asyncio(redis_server: RedisServer, redis: Redis) -> None:
    with running_worker(redis_server.url, defaults=OWN):
        async with AsyncProducer(url=redis_server.url) as producer:
            (one,) = await producer.submit_many(["w1"], **ASK)
            assert sampling(redis, one.request_id) == (0.25, 7, 1.0)
            assert sampling(redis, (await producer.submit("w1", temperature=0, **ASK)).request_id) == (0, 7, 1.0)


@pytest.mark.anyio
async def test_concurrent_submits_on_asyncio_share_one_lookup(redis_server: RedisServer) -> None:
    """Also where no worker is registered, and where the caller that began it is cancelled."""
    with CountingRelay(redis_server.port) as relay:
        async with AsyncProducer(url=relay.url) as producer:
            await producer.submit("w1", model="another")  # INFO, scripts
            relay.forget()
            first, *others = [asyncio.ensure_future(producer.submit("w1", **ASK)) for _ in range(50)]
            await asyncio.sleep(0)  # each has begun
            first.cancel()
            assert len(await asyncio.gather(*others)) == 49
            assert first.cancelled()
        assert [trip for trip in relay.round_trips if "SMEMBERS" in trip] == [["SMEMBERS"]]


@pytest.mark.anyio
async def test_a_lookup_that_fails_is_done_again(make_redis_server: MakeRedisServer) -> None:
    server = make_redis_server()
    async with AsyncProducer(url=server.url) as producer:
        await producer.submit("w1", model="another")
        server.kill()
        failed = await asyncio.gather(*(producer.submit("w1", **ASK) for _ in range(3)), return_exceptions=True)
        assert [type(error) for error in failed] == [RedisUnusable] * 3
        server.start()
        await producer.submit("w1", **ASK)


def test_they_hold_over_http(redis_server: RedisServer, redis: Redis) -> None:
    gateway = LiveGateway(redis_server.url, model=MODEL)
    try:
        with running_worker(redis_server.url, defaults=OWN), gateway.client() as http:
            for path, body in BODIES.items():
                answer = http.post(path, json={**body, "model": MODEL})
                request_id = answer.headers.get("X-Request-Id") or answer.json()["request_id"]
                assert sampling(redis, request_id) == (0.25, 7, 1.0)
    finally:
        gateway.stop()


def test_a_keyed_request_attaches_whatever_the_model_said_by_then(redis_server: RedisServer, redis: Redis) -> None:
    with Producer(url=redis_server.url) as producer:
        first = producer.submit("w1", idempotency_key="k", **ASK).request_id
    with running_worker(redis_server.url, defaults=OWN), Producer(url=redis_server.url) as producer:
        assert producer.submit("w1", idempotency_key="k", **ASK).request_id == first
        assert sampling(redis, first) == (1.0, 0, 1.0)


@pytest.mark.parametrize("registered", [b"\xff", b"[]", b"{", b'{"temperature": -1, "top_k": "x", "seed": 3}', b""])
def test_what_cannot_be_a_default_is_none(redis_server: RedisServer, redis: Redis, registered: bytes) -> None:
    with running_worker(redis_server.url, defaults=OWN) as worker, Producer(url=redis_server.url) as producer:
        redis.hset(keys.rq_worker(worker.name), "defaults", registered)
        assert sampling(redis, producer.submit("w1", **ASK).request_id) == (1.0, 0, 1.0)


def test_an_operator_can_leave_them_off(tmp_path: Path) -> None:
    folder = Path(copytree(weather_model_path(), tmp_path / "weather"))
    said = json.loads((folder / "generation_config.json").read_text("utf-8"))
    (folder / "generation_config.json").write_text(json.dumps({**said, **OWN, "do_sample": True}), "utf-8")
    for switch, expected in (("auto", OWN), ("none", {})):
        given: dict[str, Any] = {"model_path": str(folder), "generation_config": switch, "device": "cpu"}
        served = serve(WorkerSettings(redis_url=SecretStr("redis://unused"), **given))
        served.engine.stop()
        assert served.defaults == expected


def test_the_clock_decides_when_to_look_again() -> None:
    now = [0.0]
    defaults = ModelDefaults(clock=lambda: now[0])
    flight = next(defaults.lookup("m"))
    assert isinstance(flight, SingleFlight)
    next(flight.steps)
    flight.steps.send([[b"rq:worker:w"]])
    with pytest.raises(StopIteration) as found:
        flight.steps.send([[b"q", b'{"top_k": 3}']])
    assert found.value.value == {"top_k": 3}
    with pytest.raises(StopIteration):
        next(defaults.lookup("m"))
    now[0] = 10.1
    assert isinstance(next(defaults.lookup("m")), SingleFlight)


def test_names_that_callers_make_up_take_no_memory(redis: Redis) -> None:
    """What is known of a model is kept for one second, or ten: it stayed for as long as the client."""
    defaults = ModelDefaults()
    for number in range(MAX_KNOWN + 50):
        assert Driver(redis).run(defaults.lookup(f"none-{number}")) == {}
    assert len(defaults._known) == MAX_KNOWN
    assert f"none-{MAX_KNOWN + 49}" in defaults._known
