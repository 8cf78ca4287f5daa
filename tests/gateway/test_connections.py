"""Connection handling: Upgrade headers, HTTP/1.0, and keep-alive."""

from __future__ import annotations

import http.client
import json
import re
import shutil
import subprocess
from typing import TYPE_CHECKING, Any, Final

import pytest

from tests.gateway.test_guards import answered, connected
from tests.gateway.test_openai import ASKED
from tests.writers import serving

if TYPE_CHECKING:
    from tests.gateway.conftest import MakeGateway
    from tests.gateway.live import LiveGateway, WakingWriter
    from tests.redis_servers import RedisServer

BODY: Final = b'{"prompt": "x"}'
JDK: Final = (
    "Connection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA\r\nUpgrade: h2c"
)
OFFERS: Final = {
    "jdk": JDK,
    "curl": "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA",
    "websocket": "Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    "tls": "Connection: upgrade\r\nUpgrade: TLS/1.0, HTTP/1.1",
    "many": "connection: Upgrade\r\nConnection: close\r\nUpgrade: a\r\nUpgrade: b",
}


def post(offer: str, more: str = "", body: bytes = BODY, path: str = "/requests") -> bytes:
    """A POST's bytes. `more`: header lines instead of Content-Length."""
    more = more or f"Content-Length: {len(body)}"
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{offer}\r\n{more}\r\n\r\n"
    return head.encode() + body


def get(path: str = "/config.json") -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()


class TestUpgrades:
    """An Upgrade header is ignored: the request is answered over HTTP/1.1."""

    @pytest.mark.parametrize("offer", OFFERS.values(), ids=OFFERS)
    @pytest.mark.parametrize("size", [1, 7, 100_000])
    def test_the_body_is_read(self, gateway: LiveGateway, offer: str, size: int) -> None:
        """Split into any pieces."""
        closes = "close" in offer
        sent = post(offer) + (b"" if closes else get())
        with connected(gateway) as connection:
            for start in range(0, len(sent), size):
                connection.sendall(sent[start : start + size])
            received = answered(connection)
        assert received.startswith(b"HTTP/1.1 202 "), received
        assert b"upgrade" not in received.lower()
        assert received.count(b"HTTP/1.1 ") == (1 if closes else 2)

    def test_a_body_in_chunks(self, gateway: LiveGateway) -> None:
        chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in BODY) + b"0\r\n\r\n"
        with connected(gateway) as connection:
            connection.sendall(post(JDK, "Transfer-Encoding: chunked", chunks) + get())
            received = answered(connection)
        assert re.findall(rb"HTTP/1.1 (\d+) ", received) == [b"202", b"200"]

    def test_a_body_that_waits_to_be_asked_for(self, gateway: LiveGateway) -> None:
        with connected(gateway) as connection:
            connection.sendall(post(JDK, f"Content-Length: {len(BODY)}\r\nExpect: 100-continue", b""))
            assert connection.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
            connection.sendall(BODY + get())
            assert answered(connection).startswith(b"HTTP/1.1 202 ")

    def test_several_requests_at_once(self, gateway: LiveGateway) -> None:
        with connected(gateway) as connection:
            connection.sendall(post(JDK) * 3 + get())
            received = answered(connection)
        assert received.count(b"HTTP/1.1 202 ") == 3
        assert received.count(b"HTTP/1.1 200 ") == 1

    def test_a_request_without_a_body(self, gateway: LiveGateway) -> None:
        offer = f"GET /config.json HTTP/1.1\r\nHost: localhost\r\n{JDK}\r\n\r\n".encode()
        with connected(gateway) as connection:
            connection.sendall(offer + get())
            assert answered(connection).count(b"HTTP/1.1 200 ") == 2

    def test_limits_hold(self, make_gateway: MakeGateway) -> None:
        gateway = make_gateway(max_body_bytes=1024, max_header_bytes=2048)
        with connected(gateway) as connection:
            connection.sendall(post(JDK, body=b"x" * 1025))
            assert b" 413 " in answered(connection).split(b"\r\n")[0]
        with connected(gateway) as connection:
            connection.sendall(post(JDK + "\r\nX: " + "x" * 3000 + "\r\nConnection: close"))
            assert answered(connection).split(b" ")[1] in (b"400", b"431")

    def test_a_proxy_it_is_not(self, gateway: LiveGateway) -> None:
        with connected(gateway) as connection:
            connection.sendall(b"CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\n\r\n")
            assert b" 400 " in answered(connection).split(b"\r\n")[0]

    @pytest.mark.skipif(shutil.which("curl") is None, reason="no curl on PATH")
    def test_curl(self, gateway: LiveGateway) -> None:
        command = ["curl", "-sS", "--http2", "--json", BODY.decode(), "-w", " %{http_code}", f"{gateway.url}/requests"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True)
        assert done.stdout.endswith(" 202")


class TestHttp10:
    """HTTP/1.0 has no chunked encoding: a response without a length ends with its connection."""

    def ask(self, gateway: LiveGateway, body: dict[str, Any], **headers: str) -> tuple[dict[str, str], bytes]:
        content = json.dumps({"model": "weather", "messages": ASKED, **body}).encode()
        lines = {"Content-Type": "application/json", "Content-Length": str(len(content)), **headers}
        head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        with connected(gateway) as connection:
            connection.sendall(f"POST /v1/chat/completions HTTP/1.0\r\n{head}\r\n".encode() + content)
            received = answered(connection)
        top, _, rest = received.partition(b"\r\n\r\n")
        status, *answer_head = top.decode().split("\r\n")
        assert " 200 " in status
        pairs = [line.lower().split(": ", 1) for line in answer_head]
        assert len({name for name, _ in pairs}) == len(pairs), "no header twice"
        return dict(pairs), rest

    @pytest.mark.parametrize("kept", ["close", "keep-alive"])
    def test_a_stream(self, gateway: LiveGateway, redis_server: RedisServer, writer: WakingWriter, kept: str) -> None:
        with serving(redis_server.url):
            headers, body = self.ask(gateway, {"stream": True}, Connection=kept, Expect="100-continue")
        assert "transfer-encoding" not in headers
        assert headers.get("connection", "close") == "close"  # which HTTP/1.0 means where it is not said
        assert body.startswith(b"id: 0-2\ndata: {")
        assert body.endswith(b"data: [DONE]\n\n")

    def test_a_whole_answer(self, gateway: LiveGateway, redis_server: RedisServer, writer: WakingWriter) -> None:
        with serving(redis_server.url):
            headers, body = self.ask(gateway, {})
        assert int(headers["content-length"]) == len(body)
        assert json.loads(body)["choices"]


def test_a_stream_to_a_client_that_closes_says_so_once(
    gateway: LiveGateway, redis_server: RedisServer, writer: WakingWriter
) -> None:
    content = json.dumps({"model": "weather", "messages": ASKED, "stream": True})
    connection = http.client.HTTPConnection(gateway.url.removeprefix("http://"), timeout=60)
    with serving(redis_server.url):
        headers = {"Content-Type": "application/json", "Connection": "close"}
        connection.request("POST", "/v1/chat/completions", content, headers)
        answer = connection.getresponse()
        assert answer.headers.get_all("Connection") == ["close"]
        assert answer.read().endswith(b"data: [DONE]\n\n")
    connection.close()


@pytest.mark.parametrize(
    "path", ["/config.json", "http://localhost/config.json", "https://a.example:443//config.json/"]
)
def test_a_whole_url_as_sent_to_a_proxy(gateway: LiveGateway, path: str) -> None:
    with connected(gateway) as connection:
        connection.sendall(get(path))
        assert answered(connection).startswith(b"HTTP/1.1 200 ")


def test_an_idle_connection_is_kept(make_gateway: MakeGateway) -> None:
    """The default is longer than load balancers' timeouts; the server uses the setting."""
    assert make_gateway().keep_alive_s == 75
    short = make_gateway(keep_alive_s=1)
    with connected(short) as connection:
        connection.sendall(get().replace(b"Connection: close\r\n", b""))
        assert answered(connection).startswith(b"HTTP/1.1 200 ")  # and then it is closed
