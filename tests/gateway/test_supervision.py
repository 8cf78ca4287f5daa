"""Failures are contained: unreadable requests, background tasks that end, a Redis that refuses commands."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Final

import pytest

from tests.gateway.events import following
from tests.gateway.live import LiveGateway, WakingWriter
from tests.gateway.test_openai import ASKED
from tests.gateway.test_views import RECORD
from tests.waiting import wait_until
from tokenrelay.gateway.http.tasks import Background
from tokenrelay.gateway.streams.counters import GatewayCounters
from tokenrelay.gateway.streams.hub import Hub
from tokenrelay.producer._core.drivers import AsyncDriver
from tokenrelay.shared.errors import RedisUnusable
from tokenrelay.shared.redis.connections import connect_async
from tokenrelay.shared.wire import keys

if TYPE_CHECKING:
    from collections.abc import Callable

    import httpx
    from redis import Redis

    from tests.conftest import MakeRedisServer
    from tests.redis_servers import RedisServer

STRANGE: Final[list[tuple[str, bytes]]] = [
    ("state", b"paused"),
    ("state", b"failed cancelled"),
    ("state", b"\xff\xfe"),
    ("deadline_us", b"soon"),
    ("deadline_us", b""),
    ("next", b"\xff"),
]


@pytest.mark.parametrize(("field", "value"), STRANGE)
def test_a_record_that_can_not_be_read_fails_its_readers_alone(
    http: httpx.Client, redis: Redis, writer: WakingWriter, field: str, value: bytes
) -> None:
    """A newer version's value or malformed data: the sweep continues, and checks other requests' deadlines."""
    strange, other = (http.post("/requests", json={"prompt": "x"}).json()["request_id"] for _ in range(2))
    with (
        following(http, f"/requests/{strange}/events") as first,
        following(http, f"/requests/{other}/events") as second,
    ):
        assert next(first).kind == next(second).kind == "queued"
        redis.hset(keys.request(strange), field, value)
        (told,) = first
        assert (told.kind, told.json["error"]["code"]) == ("error", "stream_gone")
        redis.hset(keys.request(other), "deadline_us", 1)
        assert [event.kind for event in second] == ["expired"]
    assert http.get("/health").status_code == 200


def test_an_overdue_request_that_can_not_be_ended_keeps_nobody(
    http: httpx.Client, redis: Redis, writer: WakingWriter
) -> None:
    strange, other = (http.post("/requests", json={"prompt": "x"}).json()["request_id"] for _ in range(2))
    with (
        following(http, f"/requests/{strange}/events") as first,
        following(http, f"/requests/{other}/events") as second,
    ):
        assert next(first).kind == next(second).kind == "queued"
        redis.hset(keys.request(strange), mapping={"next": "x", "deadline_us": 1})
        assert [event.kind for event in first] == ["error"]
        redis.hset(keys.request(other), "deadline_us", 1)
        assert [event.kind for event in second] == ["expired"]


def test_work_that_ends_is_begun_again_and_said(caplog: pytest.LogCaptureFixture) -> None:
    runs: list[int] = []

    async def work() -> None:
        runs.append(len(runs))
        if len(runs) == 1:
            raise ValueError("once")
        if len(runs) == 2:
            raise asyncio.CancelledError  # a library's, which nobody meant for the task
        if len(runs) > 3:
            await asyncio.Event().wait()

    async def main() -> None:
        background = Background()
        background.run_forever("counting", work)
        async with asyncio.timeout(30):
            while len(runs) < 4:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            assert background.failing == {"counting": "it ended"}
            while background.failing:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            await background.stop()

    with caplog.at_level(logging.ERROR):
        asyncio.run(main())
    assert [record.message.split(";")[0] for record in caplog.records] == ["background task counting failed"] * 3


def test_health_knows(make_redis_server: MakeRedisServer) -> None:
    server = make_redis_server()
    gateway = LiveGateway(server.url)
    failing = True

    async def work() -> None:
        if failing:
            raise ValueError("broken")
        await asyncio.Event().wait()

    try:
        with gateway.client() as client:
            gateway.call(lambda: gateway.gateway.background.run_forever("broken", work))
            wait_until(lambda: client.get("/health").status_code == 503)
            assert client.get("/health").json()["error"]["code"] == "degraded"
            failing = False
            wait_until(lambda: client.get("/health").status_code == 200)
    finally:
        gateway.stop()


def test_a_client_that_is_ahead_while_redis_is_away() -> None:
    async def main() -> None:
        driver = AsyncDriver(connect_async("redis://127.0.0.1:1/0", retries=0))
        hub = Hub(driver, GatewayCounters())
        with pytest.raises(RedisUnusable):
            await hub.catch_up(hub.attach(RECORD))

    asyncio.run(main())


ID: Final = "a" * 22
CHAT: Final = {"model": "weather", "messages": ASKED}
ROUTES: Final[list[tuple[str, str, Any, dict[str, str]]]] = [
    ("GET", "/health", None, {}),
    ("GET", "/config.json", None, {}),
    ("GET", "/v1/models", None, {}),
    ("GET", "/v1/models/weather", None, {}),
    ("GET", "/models/weather/training", None, {}),
    ("POST", "/requests", {"prompt": "x"}, {}),
    ("POST", "/requests", {"prompt": "x"}, {"Idempotency-Key": "k"}),
    ("GET", "/requests/{id}", None, {}),
    ("GET", "/requests/{id}/events", None, {}),
    ("GET", "/requests/{id}/events?starting_after=9", None, {}),
    ("GET", "/requests/{id}/trace", None, {}),
    ("POST", "/requests/{id}/cancel", None, {}),
    ("POST", "/v1/chat/completions", CHAT, {}),
    ("POST", "/v1/chat/completions", {**CHAT, "stream": True}, {}),
    ("POST", "/v1/chat/completions", CHAT, {"Idempotency-Key": "l"}),
    ("POST", "/v1/chat/completions", {**CHAT, "model": "other"}, {}),
    ("POST", "/v1/completions", {"model": "weather", "prompt": "x"}, {}),
    ("POST", "/v1/responses", {"model": "weather", "input": "x"}, {}),
    ("POST", "/v1/responses", {"model": "weather", "input": "x", "background": True}, {}),
    ("GET", "/v1/responses/resp_{id}", None, {}),
    ("GET", "/v1/responses/resp_{id}?stream=true&starting_after=99", None, {}),
    ("POST", "/v1/responses/resp_{id}/cancel", None, {}),
]


def forbid(server: RedisServer) -> None:
    with server.client() as redis:
        redis.execute_command("ACL", "SETUSER", "default", "-@all", "+ping", "+acl")


def be_a_replica(server: RedisServer) -> None:
    with server.client() as redis:
        redis.execute_command("REPLICAOF", "127.0.0.1", "1")


def be_cut_off(server: RedisServer) -> None:
    with server.client() as redis:
        redis.config_set("replica-serve-stale-data", "no")
    be_a_replica(server)


def be_full(server: RedisServer) -> None:
    with server.client() as redis:
        redis.config_set("maxmemory", "1")


def kill(server: RedisServer) -> None:
    server.kill()


def hang(server: RedisServer) -> None:
    os.kill(server.pid, signal.SIGSTOP)


NOTHING_WORKS: Final = (kill, hang, forbid, be_cut_off)


@pytest.mark.parametrize(
    "fault", [kill, pytest.param(hang, marks=pytest.mark.slow), forbid, be_a_replica, be_cut_off, be_full]
)
def test_no_route_answers_a_bare_500(make_redis_server: MakeRedisServer, fault: Callable[[RedisServer], None]) -> None:
    """Any Redis failure: 503 in OpenAI's shape with Retry-After, unless the request needed none of it."""
    server = make_redis_server()
    gateway = LiveGateway(server.url, first_word_s=0.2)
    try:
        with ExitStack() as stack:
            client = stack.enter_context(gateway.client())
            WakingWriter(stack.enter_context(server.client())).appear()
            request_id = client.post("/requests", json={"prompt": "x"}).json()["request_id"]
            fault(server)

            def asked(route: tuple[str, str, Any, dict[str, str]]) -> tuple[str, int]:
                method, path, body, headers = route
                address = path.replace("{id}", request_id)
                with client.stream(method, address, json=body, headers=headers, timeout=60) as answer:
                    if answer.status_code < 500:
                        return address, answer.status_code
                    answer.read()
                    assert answer.json()["error"]["type"] == "server_error", answer.text
                    assert int(answer.headers["retry-after"]) > 0
                    return address, answer.status_code

            with ThreadPoolExecutor(len(ROUTES)) as threads:
                statuses = list(threads.map(asked, ROUTES))
            if fault in NOTHING_WORKS:
                unmoved = [each for each in statuses if each[1] != 503 and each[0] != "/health"]
            else:
                unmoved = [each for each in statuses if each[1] == 500]
            assert not unmoved, statuses
    finally:
        gateway.stop()
        server.kill()  # as it is, it can't be looked through for what is left
