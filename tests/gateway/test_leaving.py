"""Clients that disconnect at any time leave nothing behind."""

from __future__ import annotations

import asyncio
import random
import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Final

import httpx
import pytest
from pydantic import SecretStr

from tests.faults.proxy import Proxy
from tests.gateway.events import following
from tests.gateway.live import LiveGateway, WakingWriter
from tests.gateway.test_openai import ASKED
from tests.waiting import wait_until
from tokenrelay.gateway.core.gateway import Gateway
from tokenrelay.gateway.records.record import Annotation
from tokenrelay.gateway.streams.attachments import Attachments
from tokenrelay.shared.settings import GatewaySettings
from tokenrelay.shared.wire import keys
from tokenrelay.shared.wire.entries import text

if TYPE_CHECKING:
    from collections.abc import Callable

    from redis import Redis

    from tests.conftest import MakeRedisServer
    from tests.gateway.conftest import MakeGateway

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
    wait_until(lambda: not gateway.gateway.hub.feeds and not gateway.gateway.attachments.abandoned)
    while request_id := writer.take():
        assert writer.claim(request_id) == 0  # all cancelled, whether a worker had begun or not
    states = [redis.hget(key, "state") for key in redis.keys("tokenrelay:{*}:request")]
    assert set(states) <= {b"cancelled"}
    assert len(states) > CLIENTS / 4


def _leave_somewhere(gateway: LiveGateway, draw: random.Random) -> None:
    """Send a request, and disconnect before, during or after the start of the response."""
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


def test_a_stop_cuts_event_streams_off(
    make_gateway: MakeGateway, writer: WakingWriter, caplog: pytest.LogCaptureFixture
) -> None:
    """Event streams end at once, not after the timeout for whole answers: their clients resume at another gateway."""
    gateway = make_gateway()
    with gateway.client() as client:
        request_id = client.post("/requests", json={"prompt": "x"}).json()["request_id"]
        with client.stream("GET", f"/requests/{request_id}/events") as response:
            wait_until(lambda: gateway.gateway.attachments._sending)
            gateway.stop()
            with pytest.raises(httpx.RemoteProtocolError):
                response.read()
    assert "timeout graceful shutdown exceeded" not in caplog.text
    assert writer.take() == request_id
    assert writer.claim(request_id) == 1


class TestLeaving:
    """A non-durable request is cancelled once its last reader has been gone for the grace period."""

    BODY: Final = {"model": "weather", "messages": ASKED, "stream": True}

    def leave(self, gateway: LiveGateway, writer: WakingWriter, ask: Callable[[httpx.Client], Any]) -> str:
        """Send a request and disconnect; return the request's ID."""
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

    def test_the_grace_is_short_by_default(self) -> None:
        assert GatewaySettings().disconnect_grace_s <= 1

    def test_it_is_cancelled(self, make_gateway: MakeGateway, writer: WakingWriter) -> None:
        gateway = make_gateway(disconnect_grace_s=1.5, first_word_s=0)
        request_id = self.leave(
            gateway, writer, lambda client: client.stream("POST", "/v1/chat/completions", json=self.BODY)
        )
        assert self.state(gateway, request_id) == "in_progress"
        wait_until(lambda: self.state(gateway, request_id) == "cancelled")
        wait_until(lambda: gateway.gateway.attachments.abandoned == 0)

    @pytest.mark.parametrize(
        ("path", "more"),
        [
            ("/v1/chat/completions", {"messages": ASKED, "store": True}),
            ("/v1/completions", {"prompt": "x"}),
            ("/v1/responses", {"input": "x"}),
            ("/v1/responses", {"input": "x", "store": False}),
        ],
    )
    def test_so_is_every_other_that_is_not_durable(
        self, make_gateway: MakeGateway, writer: WakingWriter, path: str, more: dict[str, Any]
    ) -> None:
        """The tokens so far are kept."""
        gateway = make_gateway(disconnect_grace_s=0.0, first_word_s=0)
        body = {"model": "weather", "stream": True, **more}
        request_id = self.leave(gateway, writer, lambda client: client.stream("POST", path, json=body))
        wait_until(lambda: self.state(gateway, request_id) == "cancelled")
        with gateway.client() as client:
            response = client.get(f"/v1/responses/resp_{request_id}").json()
        assert (response["status"], response["output"][0]["content"][0]["text"]) == ("cancelled", "It")
        assert writer.append(request_id, " is") == "DONE"

    @pytest.mark.slow
    def test_not_while_somebody_reads_at_another_gateway(self, make_gateway: MakeGateway, writer: WakingWriter) -> None:
        gateway, other = make_gateway(disconnect_grace_s=1.0, first_word_s=0), make_gateway(disconnect_grace_s=1.0)
        request_id = self.leave(
            gateway, writer, lambda client: client.stream("POST", "/v1/chat/completions", json=self.BODY)
        )
        with other.client() as client, following(client, f"/requests/{request_id}/events") as events:
            began = next(events).json["at_us"]
            # Longer than the grace, by Redis's clock.
            wait_until(lambda: _redis_us(writer.redis) - began > 3_000_000)
            assert self.state(gateway, request_id) == "in_progress"
        wait_until(lambda: self.state(gateway, request_id) == "cancelled")

    def test_not_while_it_is_not_known(self, make_redis_server: MakeRedisServer) -> None:
        """The first gateway's check of the readers fails while the request is read at the second."""
        server = make_redis_server()
        gateway = LiveGateway(server.url, disconnect_grace_s=0.5, first_word_s=0)
        other = LiveGateway(server.url, disconnect_grace_s=0.5)
        try:
            with server.client() as redis, other.client() as client:
                writer = WakingWriter(redis)
                writer.appear()
                with ExitStack() as first:
                    asking = first.enter_context(gateway.client())
                    first.enter_context(asking.stream("POST", "/v1/chat/completions", json=self.BODY))
                    request_id = wait_until(writer.take)
                    writer.claim(request_id)
                    reading = first.enter_context(following(client, f"/requests/{request_id}/events"))
                    assert next(reading).kind == "queued"
                    redis.execute_command("ACL", "SETUSER", "default", "-hgetall", "-get")
                    moved = first.pop_all()
                with moved:
                    asking.close()
                    failed = gateway.gateway.counters.redis_errors
                    wait_until(lambda: dict(failed.items())[("readers",)] >= 2)
                    redis.execute_command("ACL", "SETUSER", "default", "+hgetall", "+get")
                    wait_until(lambda: dict(failed.items())[("readers",)] >= 2 and writer.append(request_id, "It"))
                    assert [next(reading).kind for _ in range(2)] == ["started", "token"]
                    assert writer.finish(request_id) == "OK"
        finally:
            gateway.stop()
            other.stop()

    @pytest.mark.parametrize(
        ("path", "more", "headers"),
        [
            ("/v1/chat/completions", {}, {"Idempotency-Key": "k"}),
            ("/v1/chat/completions", {}, {"X-Tokenrelay-Durable": "true"}),
            ("/v1/completions", {}, {"X-Tokenrelay-Durable": "1"}),
            ("/v1/responses", {}, {"X-Tokenrelay-Durable": "1"}),
            ("/v1/responses", {}, {"Idempotency-Key": "k"}),
            ("/v1/responses", {"background": True, "store": False}, {}),
        ],
    )
    def test_what_is_durable_goes_on(
        self, make_gateway: MakeGateway, writer: WakingWriter, path: str, more: dict[str, Any], headers: dict[str, str]
    ) -> None:
        gateway = make_gateway(disconnect_grace_s=0.0, first_word_s=0)
        asked = {"/v1/responses": {"input": "x"}, "/v1/completions": {"prompt": "x"}}.get(path, {"messages": ASKED})
        body = {"model": "weather", "stream": True, **asked, **more}
        request_id = self.leave(gateway, writer, lambda client: client.stream("POST", path, json=body, headers=headers))
        assert gateway.gateway.attachments.abandoned == 0
        writer.append(request_id, " is")
        assert writer.finish(request_id) == "OK"

    def test_durable_is_yes_or_no(self, http: httpx.Client, writer: WakingWriter) -> None:
        answer = http.post("/v1/chat/completions", json=self.BODY, headers={"X-Tokenrelay-Durable": "maybe"})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "x-tokenrelay-durable")

    @pytest.mark.parametrize("stream", [True, False])
    @pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/responses"])
    def test_a_client_that_waits_may_leave_too(
        self, make_gateway: MakeGateway, writer: WakingWriter, path: str, stream: bool
    ) -> None:
        """While waiting for a whole answer, or for a stream's first token."""
        gateway = make_gateway(disconnect_grace_s=0.1, first_word_s=60)
        asked = {"/v1/responses": {"input": "x"}, "/v1/completions": {"prompt": "x"}}.get(path, {"messages": ASKED})
        with gateway.client() as client, pytest.raises(httpx.ReadTimeout):
            client.post(path, json={"model": "weather", "stream": stream, **asked}, timeout=0.5)
        request_id = wait_until(writer.take)
        wait_until(lambda: self.state(gateway, request_id) == "cancelled")
        assert writer.claim(request_id) == 0

    @pytest.mark.parametrize("stream", [True, False])
    def test_a_client_that_got_an_error_does_not_come_back(
        self, make_redis_server: MakeRedisServer, stream: bool
    ) -> None:
        """The request was queued, but the reply was lost, and then Redis didn't answer reads of it."""
        server = make_redis_server()
        proxy = Proxy(server.port)
        gateway = LiveGateway(proxy.url, disconnect_grace_s=0.0)
        # All that a model may have a default of: looking those up would fail before the request is written.
        own = {"temperature": 1, "top_k": 0, "top_p": 1, "min_p": 0, "repetition_penalty": 1}
        body = {**self.BODY, "stream": stream, **own}
        try:
            with server.client() as redis, gateway.client() as client:
                WakingWriter(redis).appear()
                assert client.post("/requests", json={"prompt": "x"}).status_code == 202
                redis.execute_command("ACL", "SETUSER", "default", "-xrevrange")
                durable = self.lose_the_first_reply(proxy, redis, client, body, "true")
                fleeting = self.lose_the_first_reply(proxy, redis, client, body, "false")
                redis.execute_command("ACL", "SETUSER", "default", "+xrevrange")
                wait_until(lambda: redis.hget(keys.request(fleeting), "state") == b"cancelled")
                assert redis.hget(keys.request(durable), "state") == b"queued"
        finally:
            gateway.stop()
            proxy.close()

    def lose_the_first_reply(
        self, proxy: Proxy, redis: Redis, client: httpx.Client, body: dict[str, Any], durable: str
    ) -> str:
        """The ID of a request that was written although its POST got 503."""
        before = set(redis.keys("tokenrelay:{*}:request"))
        headers = {"x-tokenrelay-durable": durable}
        proxy.switch("drop-replies")
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(client.post, "/v1/chat/completions", json=body, headers=headers)
            (written,) = wait_until(lambda: set(redis.keys("tokenrelay:{*}:request")) - before)
            # The request is in Redis before its reply is at the proxy: the reply to the next try was dropped, too.
            dropped = proxy.dropped_replies
            wait_until(lambda: proxy.dropped_replies > dropped or answer.done())
            proxy.switch("pass")
            assert answer.result(60).status_code == 503
        return text(written).partition("{")[2].partition("}")[0]

    def test_who_only_looks_is_no_reader(self, make_gateway: MakeGateway, writer: WakingWriter) -> None:
        """A request whose gateway died is checked by another one, and continues."""
        gateway, other = make_gateway(first_word_s=0), make_gateway(disconnect_grace_s=0.0)
        with gateway.client() as client, client.stream("POST", "/v1/chat/completions", json=self.BODY):
            request_id = wait_until(writer.take)
            writer.claim(request_id)
            with other.client() as looking:
                for path in (f"/v1/responses/resp_{request_id}", f"/requests/{request_id}"):
                    assert looking.get(path).status_code == 200
                gone = looking.get(f"/requests/{request_id}/events?starting_after=99")
                assert gone.status_code == 410
            assert other.gateway.attachments.abandoned == 0
            assert writer.append(request_id, "It") == "OK"


def test_after_an_outage_it_is_looked_at_a_second_time(make_redis_server: MakeRedisServer) -> None:
    """After an outage the other gateways couldn't announce readers either, so the first check isn't trusted."""
    server = make_redis_server()
    gateway = Gateway(GatewaySettings(redis_url=SecretStr(server.url)))
    with server.client() as redis:
        asyncio.run(_looked_at_twice(gateway, redis))


async def _looked_at_twice(gateway: Gateway, redis: Any) -> None:
    async def until(condition: Callable[[], object]) -> None:
        await asyncio.to_thread(wait_until, condition)

    def looks() -> int:
        return int(redis.info("commandstats").get("cmdstat_hgetall", {}).get("calls", 0))

    async with gateway.running():
        tenant, annotation = gateway.tenants.tenant(None), Annotation(api="chat", fleeting=True)
        (record,) = await gateway.submit([{"prompt": "x"}], tenant, annotation)
        attachments = Attachments(gateway.hub, gateway.driver, 0.0, settled_s=2.0)
        attachment = attachments.attach(record)
        attachment.follow()
        before = looks()
        redis.execute_command("ACL", "SETUSER", "default", "-hgetall")
        attachment.leave(disconnected=True)
        await until(lambda: dict(gateway.counters.redis_errors.items()).get(("readers",)))
        redis.execute_command("ACL", "SETUSER", "default", "+hgetall")
        await until(lambda: looks() > before)
        redis.hset(keys.attached(record.request_id), "another", 2**60)

        def state() -> object:
            return redis.hget(keys.request(record.request_id), "state")

        await until(lambda: looks() > before + 1 or state() == b"cancelled")
        assert (state(), attachments.abandoned) == (b"queued", 1)
        redis.delete(keys.attached(record.request_id))
        await until(lambda: state() == b"cancelled")
        await until(lambda: attachments.abandoned == 0)


def _redis_us(redis: Redis) -> int:
    seconds, microseconds = redis.time()
    return int(seconds) * 1_000_000 + int(microseconds)
