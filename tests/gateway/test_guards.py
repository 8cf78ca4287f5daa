"""Size and time limits of requests, browser security headers, and responses while Redis is down."""

from __future__ import annotations

import http.client as http_client
import json
import socket
import time
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

import pytest

from tests.gateway.events import following
from tests.gateway.live import LiveGateway, WakingWriter
from tests.waiting import wait_until

if TYPE_CHECKING:
    import httpx

    from tests.conftest import MakeRedisServer
    from tests.gateway.conftest import MakeGateway


def connected(gateway: LiveGateway) -> socket.socket:
    host, port = gateway.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=60)


def answered(connection: socket.socket) -> bytes:
    """All bytes until the other side closes."""
    received = b""
    with suppress(ConnectionResetError):  # what it hadn't read when it closed
        while part := connection.recv(65_536):
            received += part
    return received


def test_a_body_that_is_too_large(make_gateway: MakeGateway) -> None:
    gateway = make_gateway(max_body_bytes=2048)
    with gateway.client() as client:
        for content in (b"x" * 2049, (b"x" * 100 for _ in range(21))):
            answer = client.post("/requests", content=content, headers={"Content-Type": "application/json"})
            assert (answer.status_code, answer.json()["error"]["limit"]) == (413, 2048)
        assert client.post("/requests", json={"prompt": "x" * 1500}).status_code == 202


def test_a_body_that_is_far_too_large(make_gateway: MakeGateway) -> None:
    """For example an image. A client that is still writing gets the response too, and not a reset, on which it would
    retry."""
    gateway = make_gateway(max_body_bytes=2048)
    for content in (b"x" * 30_000_000, (b"x" * 100_000 for _ in range(300))):
        connection = http_client.HTTPConnection(gateway.url.removeprefix("http://"), timeout=60)
        connection.request("POST", "/requests", content, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        assert (answer.status, json.loads(answer.read())["error"]["code"]) == (413, "body_too_large")
        connection.close()


def test_a_body_that_never_ends(make_gateway: MakeGateway) -> None:
    with connected(make_gateway(receive_timeout_s=0.3, max_body_bytes=1024)) as connection:
        head = b"POST /requests HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n"
        connection.sendall(head + b"x" * 2000)
        assert b" 413 " in answered(connection).split(b"\r\n")[0]


def test_a_body_that_never_comes(make_gateway: MakeGateway) -> None:
    with connected(make_gateway(receive_timeout_s=0.3)) as connection:
        connection.sendall(b"POST /requests HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        assert b" 408 " in answered(connection).split(b"\r\n")[0]


def test_headers_that_dribble(make_gateway: MakeGateway) -> None:
    with connected(make_gateway(receive_timeout_s=0.3)) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n")
        assert answered(connection) == b""


def test_a_kept_connection_may_ask_again_later(make_gateway: MakeGateway) -> None:
    """The header timeout starts with the first byte, not with the connection."""
    gateway = make_gateway(receive_timeout_s=0.2)
    with gateway.client() as client:
        for _ in range(2):
            assert client.get("/health").status_code == 200
            until = time.monotonic() + 0.4
            wait_until(partial(_past, until))


def _past(until: float) -> bool:
    return time.monotonic() > until


@pytest.mark.parametrize("size", [3000, 300_000])
def test_headers_that_are_too_large(make_gateway: MakeGateway, size: int) -> None:
    with connected(make_gateway(max_header_bytes=2048)) as connection:
        with suppress(ConnectionError):
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nX: " + b"x" * size)
        assert answered(connection).split(b" ")[1:2] in ([b"400"], [])
    with connected(make_gateway(max_header_bytes=2048)) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX: " + b"x" * 2048 + b"\r\n\r\n")
        assert answered(connection).split(b" ")[1] in (b"400", b"431")


@pytest.mark.parametrize("path", ["/health", "/v1/chat/completions"])
def test_more_connections_than_may(make_gateway: MakeGateway, path: str) -> None:
    gateway = make_gateway(max_connections=3)
    with connected(gateway), connected(gateway) as second, gateway.client() as third, gateway.client() as fourth:
        assert third.get("/health").status_code == 200
        answer = fourth.get(path) if path == "/health" else fourth.post(path, json={"model": "weather"})
        error = answer.json()["error"]
        assert (answer.status_code, error["code"], error["type"]) == (503, "too_many_connections", "server_error")
        assert (answer.headers["retry-after"], answer.headers["connection"]) == ("1", "close")
        second.close()
        wait_until(lambda: gateway.connections < 3)
        assert fourth.get("/health").status_code == 200


def test_a_form_can_not_submit(http: httpx.Client) -> None:
    """Content types that browsers send without a CORS preflight (text/plain, forms) aren't accepted as JSON."""
    for kind in ("text/plain", "application/x-www-form-urlencoded"):
        answer = http.post("/requests", content='{"prompt": "x"}', headers={"Content-Type": kind})
        assert answer.status_code == 400


def test_the_page_runs_its_own_files_only(http: httpx.Client) -> None:
    answer = http.get("/")
    assert answer.status_code == 200
    policy = answer.headers["content-security-policy"]
    assert "script-src 'self'" in policy
    assert "default-src 'none'" in policy
    assert "unsafe-inline" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("name", ["..%2fapp.py", "%2e%2e/app.py", "none.js", "index", "py.typed", "a%00.js"])
def test_no_other_file_is_served(http: httpx.Client, name: str) -> None:
    assert http.get(f"/static/{name}").status_code == 404


def test_unknown_paths_and_methods_answer_in_the_same_shape(http: httpx.Client) -> None:
    for answer, status in ((http.get("/none"), 404), (http.delete("/requests"), 405)):
        assert (answer.status_code, answer.json()["error"]["type"]) == (status, "invalid_request_error")


def test_the_demo_button_is_nowhere_else(http: httpx.Client) -> None:
    assert http.post("/demo/kill-worker").status_code == 404
    assert http.get("/config.json").json()["demo"] is False


def test_redis_that_is_gone_is_a_503(make_redis_server: MakeRedisServer) -> None:
    server = make_redis_server()
    gateway = LiveGateway(server.url)
    try:
        with gateway.client() as client:
            assert client.get("/health").status_code == 200
            server.kill()
            for answer in (client.get("/health"), client.post("/requests", json={"prompt": "x"})):
                assert (answer.status_code, answer.json()["error"]["code"]) == (503, "redis_unusable")
                assert answer.headers["retry-after"]
            server.start()
            wait_until(lambda: client.get("/health").status_code == 200)
    finally:
        gateway.stop()


def test_readers_outlast_a_restart_of_redis(make_redis_server: MakeRedisServer) -> None:
    server = make_redis_server("--appendonly", "yes", "--appendfsync", "always")
    gateway = LiveGateway(server.url)
    try:
        with gateway.client() as client, server.client() as redis:
            writer = WakingWriter(redis)
            writer.appear()
            request_id = client.post("/requests", json={"prompt": "x"}).json()["request_id"]
            writer.take()
            writer.claim(request_id)
            writer.append(request_id, "It")
            with following(client, f"/requests/{request_id}/events") as events:
                assert [next(events).kind for _ in range(3)] == ["queued", "started", "token"]
                server.kill()
                for _ in range(5):  # for longer than the client's own retries last
                    assert client.get("/health").status_code == 503
                server.start()
                writer.append(request_id, " is")
                assert next(events).json["text"] == " is"
                writer.finish(request_id)
                assert [event.kind for event in events] == ["completed"]
    finally:
        gateway.stop()
