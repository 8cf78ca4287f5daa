"""Clients that leave at any moment: nothing of them stays behind."""

from __future__ import annotations

import random
import socket
from typing import TYPE_CHECKING, Any, Final

import httpx
import pytest

from tests.gateway.events import following
from tests.gateway.test_openai import ASKED
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from redis import Redis

    from tests.gateway.conftest import MakeGateway
    from tests.gateway.live import LiveGateway, WakingWriter

CLIENTS = 60
BODY = b'{"model": "weather", "messages": [{"role": "user", "content": "x"}], "stream": true}'


@pytest.mark.slow
def test_random_disconnects_leave_nothing(make_gateway: MakeGateway, redis: Redis, writer: WakingWriter) -> None:
    """`python -m benchmarks --only http` does the same with 500."""
    gateway = make_gateway(disconnect_grace_s=0.1)
    draw = random.Random(7)
    for _ in range(CLIENTS):
        _leave_somewhere(gateway, draw)
        if draw.random() < 0.5 and (request_id := writer.take()) and writer.claim(request_id):
            writer.append(request_id, "It")
    wait_until(lambda: not gateway.gateway.hub.feeds and not gateway.gateway.attachments.leaving)
    while request_id := writer.take():
        assert writer.claim(request_id) == 0  # all cancelled, whether a worker had begun or not
    states = [redis.hget(key, "state") for key in redis.keys("tokenrelay:{*}:request")]
    assert set(states) <= {b"cancelled"}
    assert len(states) > CLIENTS / 4


def _leave_somewhere(gateway: LiveGateway, draw: random.Random) -> None:
    """Ask, and go away before, while or after the answer's beginning comes."""
    host, port = gateway.url.removeprefix("http://").split(":")
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    asked = f"{head}Content-Length: {len(BODY)}\r\n\r\n".encode() + BODY
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(asked[: draw.choice((len(asked), len(asked), len(asked) - 1, 20))])
        if draw.random() < 0.5:
            connection.settimeout(0.2)
            try:
                connection.recv(draw.choice((1, 100, 4096)))
            except TimeoutError:
                return


class TestLeaving:
    """A plain chat is cancelled once its last reader has been gone for the grace; anything durable isn't."""

    BODY: Final = {"model": "weather", "messages": ASKED, "stream": True}

    def leave(self, gateway: LiveGateway, writer: WakingWriter, ask: Callable[[httpx.Client], Any]) -> str:
        """Have a client ask and go away; the request's ID."""
        with gateway.client() as client, ask(client) as response:
            assert response.status_code == 200
            request_id = wait_until(writer.take)
            writer.claim(request_id)
            writer.append(request_id, "It")
            wait_until(lambda: gateway.readers == 1)
        wait_until(lambda: gateway.readers == 0)
        return request_id

    def state(self, gateway: LiveGateway, request_id: str) -> str:
        with gateway.client() as client:
            return str(client.get(f"/requests/{request_id}").json()["state"])

    def test_it_is_cancelled(self, make_gateway: MakeGateway, writer: WakingWriter) -> None:
        gateway = make_gateway(disconnect_grace_s=1.5)
        request_id = self.leave(
            gateway, writer, lambda client: client.stream("POST", "/v1/chat/completions", json=self.BODY)
        )
        assert self.state(gateway, request_id) == "in_progress"
        wait_until(lambda: self.state(gateway, request_id) == "cancelled")
        wait_until(lambda: gateway.gateway.attachments.leaving == 0)

    @pytest.mark.slow
    def test_not_while_somebody_reads_at_another_gateway(self, make_gateway: MakeGateway, writer: WakingWriter) -> None:
        gateway, other = make_gateway(disconnect_grace_s=2.0), make_gateway(disconnect_grace_s=2.0)
        request_id = self.leave(
            gateway, writer, lambda client: client.stream("POST", "/v1/chat/completions", json=self.BODY)
        )
        with other.client() as client, following(client, f"/requests/{request_id}/events") as events:
            began = next(events).json["at_us"]
            # Longer than the grace, by Redis's clock.
            wait_until(lambda: _redis_us(writer.redis) - began > 6_000_000)
            assert self.state(gateway, request_id) == "in_progress"
        wait_until(lambda: self.state(gateway, request_id) == "cancelled")

    @pytest.mark.parametrize(
        ("path", "more", "headers"),
        [
            ("/v1/chat/completions", {"store": True}, {}),
            ("/v1/chat/completions", {}, {"Idempotency-Key": "k"}),
            ("/v1/responses", {}, {}),
            ("/v1/responses", {"background": True, "store": False}, {}),
        ],
    )
    def test_what_is_durable_goes_on(
        self, make_gateway: MakeGateway, writer: WakingWriter, path: str, more: dict[str, Any], headers: dict[str, str]
    ) -> None:
        gateway = make_gateway(disconnect_grace_s=0.0)
        asked = {"input": "x"} if path.endswith("responses") else {"messages": ASKED}
        body = {"model": "weather", "stream": True, **asked, **more}
        request_id = self.leave(gateway, writer, lambda client: client.stream("POST", path, json=body, headers=headers))
        assert gateway.gateway.attachments.leaving == 0
        writer.append(request_id, " is")
        assert writer.finish(request_id) == "OK"

    def test_a_client_that_waits_for_the_whole_may_leave_too(
        self, make_gateway: MakeGateway, writer: WakingWriter
    ) -> None:
        gateway = make_gateway(disconnect_grace_s=0.1)
        with gateway.client() as client, pytest.raises(httpx.ReadTimeout):
            client.post("/v1/chat/completions", json={**self.BODY, "stream": False}, timeout=0.5)
        request_id = writer.take() or ""
        wait_until(lambda: self.state(gateway, request_id) == "cancelled")
        writer.claim(request_id)


def _redis_us(redis: Redis) -> int:
    seconds, microseconds = redis.time()
    return int(seconds) * 1_000_000 + int(microseconds)
