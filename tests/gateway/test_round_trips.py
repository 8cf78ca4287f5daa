"""Round trips to Redis per POST, counted on the connection between gateway and server."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final

import pytest
from pydantic import SecretStr

from tests.relay import CountingRelay
from tokenrelay.gateway.core.tenants import hash_of
from tokenrelay.shared.store import requests
from tokenrelay.shared.store.replies import Cancelled
from tokenrelay.shared.wire import keys

if TYPE_CHECKING:
    from collections.abc import Iterator

    import httpx
    from redis import Redis

    from tests.gateway.conftest import MakeGateway
    from tests.gateway.live import WakingWriter
    from tests.redis_servers import RedisServer
    from tokenrelay.shared.redis.batches import Pipeline

ALICE: Final = "tr-alice"
KEYS: Final = json.dumps([{"name": "alice", "sha256": hash_of(ALICE), "max_concurrent": 50, "max_queued": 40}])
SAID: Final[dict[str, Any]] = {"temperature": 0.5, "top_k": 5, "top_p": 0.5, "min_p": 0, "repetition_penalty": 1}
"""All options with model defaults, which a gateway would otherwise look up every 10 s."""
BODY: Final = {"prompt": "x", **SAID}


@pytest.fixture
def relay(redis_server: RedisServer) -> Iterator[CountingRelay]:
    with CountingRelay(redis_server.port) as relay:
        yield relay


@pytest.fixture
def anybody(relay: CountingRelay, make_gateway: MakeGateway) -> Iterator[httpx.Client]:
    with make_gateway(redis_url=relay.url).client() as client:
        assert client.post("/requests", json=BODY).status_code == 202  # INFO, scripts
        relay.forget()
        yield client


@pytest.fixture
def alice(relay: CountingRelay, make_gateway: MakeGateway) -> Iterator[httpx.Client]:
    gateway = make_gateway(redis_url=relay.url, api_keys=SecretStr(KEYS))
    with gateway.client(Authorization=f"Bearer {ALICE}") as client:
        assert client.post("/requests", json=BODY, headers={"Idempotency-Key": "first"}).status_code == 202
        relay.forget()
        yield client


def submit(client: httpx.Client, key: str | None = None) -> str:
    answer = client.post("/requests", json=BODY, headers={"Idempotency-Key": key} if key else None)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["request_id"])


def test_a_plain_post_takes_two(anybody: httpx.Client, relay: CountingRelay) -> None:
    submit(anybody)
    assert relay.round_trips == [["EVALSHA"], ["EVALSHA"]]  # create, enqueue


def test_a_streamed_one_takes_two_before_its_stream_is_read(
    anybody: httpx.Client, relay: CountingRelay, writer: WakingWriter
) -> None:
    body = {"model": "weather", "messages": [{"role": "user", "content": "x"}], "stream": True, **SAID}
    with anybody.stream("POST", "/v1/chat/completions", json=body, headers={"x-tokenrelay-durable": "true"}) as answer:
        request_id = answer.headers["x-request-id"]
        trips = list(relay.round_trips)
        writer.answer(writer.take() or "")  # the one that warmed the gateway up
        assert writer.take() == request_id
        writer.answer(request_id)
        assert "[DONE]" in answer.read().decode()
    assert next(number for number, trip in enumerate(trips) if "XRANGE" in trip) == 2


def test_concurrent_posts_share_one_lookup_of_their_models_defaults(
    anybody: httpx.Client, relay: CountingRelay, redis: Redis
) -> None:
    queue, worker = keys.queue("weather", "default"), keys.rq_worker("w")
    redis.hset(worker, mapping={"queues": queue, "defaults": json.dumps({"top_k": 3})})
    redis.sadd(keys.rq_workers(queue), worker)
    for key in (worker, keys.rq_workers(queue)):
        redis.expire(key, 600)
    with ThreadPoolExecutor(50) as threads:
        answers = list(threads.map(lambda _: anybody.post("/requests", json={"prompt": "x"}), range(50)))
    assert {answer.status_code for answer in answers} == {202}
    for answer in answers:
        body: Any = redis.hget(keys.request(answer.json()["request_id"]), "request")
        assert json.loads(body)["top_k"] == 3
    assert [trip for trip in relay.round_trips if not set(trip) <= {"EVALSHA"}] == [["SMEMBERS"], ["HMGET"]]


@pytest.mark.parametrize("open_requests", [0, 35])
def test_with_a_key_and_limits_it_takes_three_however_many_are_open(
    alice: httpx.Client, relay: CountingRelay, open_requests: int
) -> None:
    for _ in range(open_requests):
        submit(alice)
    relay.forget()
    submit(alice, key="one")
    assert relay.round_trips == [["EVALSHA"]] * 3  # admit, create, enqueue


def test_at_its_limit_it_takes_three_once_one_has_ended(
    alice: httpx.Client, relay: CountingRelay, writer: WakingWriter
) -> None:
    """RQ's job has ended, so the script needs no further check."""
    for _ in range(39):
        submit(alice)
    writer.answer(writer.take() or "")
    relay.forget()
    submit(alice, key="one")
    assert relay.round_trips == [["EVALSHA"]] * 3


@pytest.mark.parametrize("ended", [False, True])
def test_a_repeat_takes_four_at_most(
    alice: httpx.Client, relay: CountingRelay, writer: WakingWriter, redis: Redis, ended: bool
) -> None:
    """Also long after the first request, when the key is no longer new."""
    first = submit(alice, key="one")
    if ended:
        writer.answer(writer.take() or "")
        writer.answer(writer.take() or "")
    relay.forget()
    assert submit(alice, key="one") == first
    assert len(relay.round_trips) <= 4
    assert redis.delete(*redis.keys("tokenrelay:idempotency:*:new"))
    relay.forget()
    assert submit(alice, key="one") == first
    assert len(relay.round_trips) <= 4


def test_a_refusal_over_the_limit_asks_for_the_counted_alone(
    alice: httpx.Client, relay: CountingRelay, writer: WakingWriter
) -> None:
    for _ in range(39):
        submit(alice)
    for _ in range(5):
        writer.claim(writer.take() or "")
    for _ in range(5):
        submit(alice)
    relay.forget()
    refused = alice.post("/requests", json=BODY)
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "queue_limit")
    assert relay.round_trips == [["EVALSHA"], ["HMGET"] * 40]


def test_an_end_that_rq_has_not_heard_of_makes_room(
    alice: httpx.Client, relay: CountingRelay, redis: Redis, pipeline: Pipeline
) -> None:
    """A worker writes the end before it closes RQ's job: a client that saw the end may submit again at once."""
    ended = [submit(alice) for _ in range(39)][20]
    assert alice.post("/requests", json=BODY).status_code == 429
    assert pipeline.ask(requests.cancel(ended, "somebody")) == Cancelled("")
    submit(alice)
    assert redis.zscore(keys.of_owner("alice"), ended) is None
    assert alice.post("/requests", json=BODY).status_code == 429
