"""API keys: authentication, limits, and isolation of tenants."""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING, Any, Final

import pytest
from pydantic import SecretStr

from tests.gateway.events import following
from tests.waiting import wait_until
from tokenrelay.gateway.core.tenants import Tenants, hash_of, new_key
from tokenrelay.shared.errors import SettingsError
from tokenrelay.shared.settings import GatewaySettings
from tokenrelay.shared.wire import keys

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import httpx
    from redis import Redis

    from tests.gateway.conftest import MakeGateway
    from tests.gateway.live import LiveGateway, WakingWriter
    from tests.redis_servers import RedisServer

ALICE, BOB = "tr-alice", "tr-bob"
KEYS: Final = json.dumps(
    [
        {"name": "alice", "sha256": hash_of(ALICE), "max_concurrent": 2},
        {"name": "bob", "sha256": hash_of(BOB), "max_queued": 1},
    ]
)


@pytest.fixture
def gateway(make_gateway: MakeGateway) -> LiveGateway:
    return make_gateway(api_keys=SecretStr(KEYS))


@pytest.fixture
def alice(gateway: LiveGateway) -> Iterator[httpx.Client]:
    with gateway.client(Authorization=f"Bearer {ALICE}") as client:
        yield client


@pytest.fixture
def bob(gateway: LiveGateway) -> Iterator[httpx.Client]:
    with gateway.client(Authorization=f"Bearer {BOB}") as client:
        yield client


def submitted(client: httpx.Client, **headers: str) -> str:
    answer = client.post("/requests", json={"prompt": "x"}, headers=headers)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["request_id"])


PROTECTED: Final = [
    ("POST", "/requests"),
    ("GET", f"/requests/{'a' * 22}"),
    ("GET", f"/requests/{'a' * 22}/events"),
    ("GET", f"/requests/{'a' * 22}/trace"),
    ("GET", f"/requests/{'a' * 22}/prompt"),
    ("POST", f"/requests/{'a' * 22}/cancel"),
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/completions"),
    ("POST", "/v1/responses"),
    ("GET", f"/v1/responses/resp_{'a' * 22}"),
    ("POST", f"/v1/responses/resp_{'a' * 22}/cancel"),
    ("GET", "/v1/models"),
    ("GET", "/models/weather/training"),
]


@pytest.mark.parametrize("authorization", [None, "Bearer tr-other", "Bearer", "Basic YWxpY2U6eA=="])
def test_without_a_key_nothing_is_to_be_had(gateway: LiveGateway, authorization: str | None) -> None:
    headers = {"Authorization": authorization} if authorization else {}
    with gateway.client(**headers) as client:
        for method, path in PROTECTED:
            answer = client.request(method, path, json={} if method == "POST" else None)
            assert answer.status_code == 401, path
            assert answer.headers["www-authenticate"] == "Bearer"
            assert answer.json()["error"]["code"] == "invalid_api_key"


def test_every_route_wants_a_key_or_is_known_to_be_public(gateway: LiveGateway) -> None:
    with gateway.client() as client:
        paths: dict[str, Any] = client.get("/openapi.json").json()["paths"]
        assert client.get("/config.json").json() == {"demo": False, "models": [], "auth": True}
    secured = {path for path, item in paths.items() if all("security" in one for one in item.values())}
    assert set(paths) - secured == {"/config.json", "/health"}


def test_another_key_s_request_is_not_there(alice: httpx.Client, bob: httpx.Client, writer: WakingWriter) -> None:
    request_id = submitted(alice)
    with following(alice, f"/requests/{request_id}/events") as events:
        assert next(events).kind == "queued"
        for method, path in [
            ("GET", f"/requests/{request_id}"),
            ("GET", f"/requests/{request_id}/events"),
            ("GET", f"/requests/{request_id}/trace"),
            ("GET", f"/requests/{request_id}/prompt"),
            ("POST", f"/requests/{request_id}/cancel"),
            ("GET", f"/v1/responses/resp_{request_id}"),
            ("GET", f"/v1/responses/resp_{request_id}?stream=true"),
            ("POST", f"/v1/responses/resp_{request_id}/cancel"),
        ]:
            answer, none = bob.request(method, path), bob.request(method, path.replace(request_id, "b" * 22))
            assert answer.status_code == 404, path
            assert answer.text.replace(request_id, "b" * 22) == none.text
        writer.answer(writer.take() or "")
        assert list(events)[-1].kind == "completed"


def test_a_key_s_idempotency_keys_are_its_own(alice: httpx.Client, bob: httpx.Client) -> None:
    header = {"Idempotency-Key": "same"}
    assert submitted(alice, **header) == submitted(alice, **header)
    assert submitted(alice, **header) != submitted(bob, **header)


def test_too_many_at_a_time(alice: httpx.Client, writer: WakingWriter) -> None:
    first, _ = submitted(alice), submitted(alice)
    answer = alice.post("/requests", json={"prompt": "x"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "concurrency_limit")
    assert int(answer.headers["retry-after"]) >= 1
    assert writer.take() == first
    writer.answer(first)
    submitted(alice)


def test_too_many_in_the_queue(bob: httpx.Client, writer: WakingWriter) -> None:
    first = submitted(bob)
    answer = bob.post("/v1/responses", json={"model": "weather", "input": "x", "background": True})
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "queue_limit")
    assert writer.take() == first
    writer.claim(first)
    submitted(bob)
    writer.finish(first)


def test_of_many_at_once_as_many_are_let_in_as_may(
    make_gateway: MakeGateway, gateway: LiveGateway, redis: Redis
) -> None:
    """Over two gateways, which share state only through Redis."""
    gateways = [gateway, make_gateway(api_keys=SecretStr(KEYS))]
    statuses: list[int] = []

    def ask(where: LiveGateway) -> None:
        with where.client(Authorization=f"Bearer {ALICE}") as client:
            statuses.append(client.post("/requests", json={"prompt": "x"}).status_code)

    threads = [threading.Thread(target=ask, args=(gateways[number % 2],)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(statuses) == [202] * 2 + [429] * 10
    assert len(redis.keys("tokenrelay:{*}:request")) == 2


def test_a_refused_request_holds_no_place(alice: httpx.Client, redis: Redis) -> None:
    for _ in range(5):
        assert alice.post("/requests", json={"prompt": "x", "top_p": 2}).status_code == 400
    assert redis.zcard(keys.of_owner("alice")) == 0
    submitted(alice)


def test_what_a_dead_gateway_left_holds_no_place_for_long(alice: httpx.Client, redis: Redis) -> None:
    redis.zadd(keys.of_owner("alice"), {f"{'g' * 21}{number}": 1_000_000 for number in range(5)})
    submitted(alice)
    assert redis.zcard(keys.of_owner("alice")) == 1


def test_a_request_on_its_way_counts(alice: httpx.Client, redis: Redis) -> None:
    """Another gateway's request was admitted but not written yet. The previous release used the same scores."""
    seconds, microseconds = redis.time()
    redis.zadd(keys.of_owner("alice"), {"g" * 22: seconds * 1_000_000 + microseconds})
    submitted(alice)
    assert alice.post("/requests", json={"prompt": "x"}).json()["error"]["code"] == "concurrency_limit"


def test_a_running_request_that_rqs_clean_up_failed_counts(
    alice: httpx.Client, writer: WakingWriter, redis: Redis
) -> None:
    running = submitted(alice)
    assert writer.take() == running
    writer.claim(running)
    redis.hset(keys.rq_job(running), "status", "failed")
    submitted(alice)
    assert alice.post("/requests", json={"prompt": "x"}).json()["error"]["code"] == "concurrency_limit"
    writer.finish(running)
    submitted(alice)


def test_a_keyed_retry_of_what_was_never_enqueued_is_let_in_like_another(alice: httpx.Client, redis: Redis) -> None:
    """Its gateway died between create and enqueue, or the queue was full; its admission has expired meanwhile."""
    header = {"Idempotency-Key": "k"}
    first = submitted(alice, **header)
    redis.delete(keys.rq_job(first))
    redis.lrem(keys.rq_queue(keys.queue("weather", "default")), 0, first)
    redis.zrem(keys.of_owner("alice"), first)
    second, _ = submitted(alice), submitted(alice)
    refused = alice.post("/requests", json={"prompt": "x"}, headers=header)
    assert refused.json()["error"]["code"] == "concurrency_limit"
    assert alice.post(f"/requests/{second}/cancel").status_code == 200
    assert submitted(alice, **header) == first
    assert alice.post("/requests", json={"prompt": "x"}).json()["error"]["code"] == "concurrency_limit"


def test_started_requests_are_not_counted_as_queued_again(
    make_gateway: MakeGateway, writer: WakingWriter, redis: Redis
) -> None:
    """The first three are known to have been started, and are skipped from then on."""
    limits = {"name": "carol", "sha256": hash_of("tr-carol"), "max_concurrent": 9, "max_queued": 2}
    gateway = make_gateway(api_keys=SecretStr(json.dumps([limits])))
    with gateway.client(Authorization="Bearer tr-carol") as carol:
        for _ in range(3):
            submitted(carol)
            writer.claim(writer.take() or "")
        submitted(carol), submitted(carol)
        assert carol.post("/requests", json={"prompt": "x"}).json()["error"]["code"] == "queue_limit"
    owned = keys.of_owner("carol")
    assert (redis.zcount(owned, "-inf", "(0"), redis.zcount(owned, "(0", "+inf")) == (3, 2)


def test_keys_may_be_in_a_file(tmp_path: Path) -> None:
    key, line = new_key("carol")
    file = tmp_path / "keys.json"
    file.write_text(json.dumps([line]))
    tenants = Tenants(GatewaySettings(api_keys_file=file))
    assert tenants.tenant(key).owner == "carol"
    assert key not in file.read_text()


@pytest.mark.parametrize(
    "given",
    ["", "{}", "[]", '[{"name": "a"}]', '[{"name": "a b", "sha256": "' + "0" * 64 + '"}]', KEYS[:-1], "[1]"],
)
def test_unusable_keys_are_an_error_at_start(given: str) -> None:
    with pytest.raises(SettingsError, match="TOKENRELAY_API_KEYS"):
        Tenants(GatewaySettings(api_keys=SecretStr(given)))


def test_a_missing_file_is_an_error_at_start(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="API_KEYS_FILE"):
        Tenants(GatewaySettings(api_keys_file=tmp_path / "none"))


def test_a_name_that_is_none() -> None:
    with pytest.raises(SettingsError, match="name"):
        new_key("a b")


def test_the_queue_s_own_limit_is_a_429_too(make_gateway: MakeGateway) -> None:
    with make_gateway(max_queue_depth=1).client() as client:
        submitted(client)
        answer = client.post("/requests", json={"prompt": "x"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "queue_full")
    assert answer.headers["retry-after"] == "1"


def test_readers_come_and_go(gateway: LiveGateway, alice: httpx.Client, writer: WakingWriter) -> None:
    request_id = submitted(alice)
    with following(alice, f"/requests/{request_id}/events"):
        wait_until(lambda: gateway.readers == 1)
    wait_until(lambda: not gateway.gateway.hub.feeds)


@pytest.mark.parametrize("protocol", [2, 3])
def test_limits_hold_whichever_protocol_redis_is_spoken_to_in(
    redis_server: RedisServer, make_gateway: MakeGateway, protocol: int
) -> None:
    """RESP2 returns a sorted set's scores in a flat list, RESP3 in pairs; redis-py 6 and 7 default to RESP2."""
    gateway = make_gateway(redis_url=f"{redis_server.url}?protocol={protocol}", api_keys=SecretStr(KEYS))
    with gateway.client(Authorization=f"Bearer {ALICE}") as alice:
        submitted(alice)
        submitted(alice)
        refused = alice.post("/requests", json={"prompt": "x"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "concurrency_limit")
