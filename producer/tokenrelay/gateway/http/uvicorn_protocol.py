"""uvicorn's HTTP protocol class with additions: limits on connections and header time; direct chunk writes (see
`chunks`); Upgrade headers are ignored.

h11, which it runs on, limits the headers' size, frames bodies for HTTP/1.0, and takes a request with an Upgrade header
for one of HTTP/1.1 unless it's answered with 101.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, ClassVar, Final

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from tokenrelay.gateway.http.chunks import EXTENSION
from tokenrelay.gateway.http.guards import discard_body
from tokenrelay.gateway.http.problems import Problem, problem_response

if TYPE_CHECKING:
    from asyncio import TimerHandle

    from starlette.types import Receive, Scope, Send


_DISCARD_S: Final = 1.0


class LimitedProtocol(H11Protocol):
    """One connection. Closes it if the headers are too slow.

    Pipelined requests are handled one at a time, so the current response owns the connection.
    """

    header_timeout_s: ClassVar[float] = 20.0
    max_connections: ClassVar[int] = 4000

    _header_timer: TimerHandle | None = None

    @classmethod
    def with_limits(cls, header_timeout_s: float, max_connections: int) -> type[LimitedProtocol]:
        """A subclass with these limits; uvicorn creates an instance for each connection."""
        limits = {"header_timeout_s": header_timeout_s, "max_connections": max_connections}
        return type("LimitedProtocol", (cls,), limits)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.app = self._answer
        self._expect_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        self._got_headers()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.conn.their_state is h11.IDLE and self._header_timer is None:
            self._expect_headers()
        super().data_received(data)

    def handle_events(self) -> None:
        """Start the next request, if its headers are complete."""
        before = self.cycle
        super().handle_events()
        if self.conn.their_state is not h11.IDLE:
            self._got_headers()
        if self.cycle is not before and self.scope["http_version"] != "1.0":  # which has no chunks
            self.scope["extensions"] = {EXTENSION: {"write": self.write_chunk, "abort": self.transport.abort}}

    def write_chunk(self, chunk: bytes) -> bool:
        """Write a framed chunk: see `chunks.chunk_writer`."""
        if self.flow.write_paused or self.transport.is_closing():
            return False
        self.transport.write(chunk)
        return True

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] == "CONNECT":
            refusal = Problem(400, "this server is no proxy", "invalid_request", headers={"Connection": "close"})
            await problem_response(refusal)(scope, receive, send)
        elif len(self.connections) > self.max_connections:
            await _too_many_connections(scope, receive, send)
        else:
            await self.config.loaded_app(scope, receive, send)

    def _should_upgrade(self) -> bool:
        return False

    def _expect_headers(self) -> None:
        self._header_timer = asyncio.get_running_loop().call_later(self.header_timeout_s, self._close)

    def _got_headers(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _close(self) -> None:
        if not self.transport.is_closing():
            self.transport.close()


async def _too_many_connections(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer 503 in OpenAI's shape; uvicorn would answer plain text."""
    if not any(name == b"expect" for name, _ in scope["headers"]):
        await discard_body(receive, _DISCARD_S)
    message = "the gateway has reached its connection limit; retry"
    headers = {"Retry-After": "1", "Connection": "close"}
    await problem_response(Problem(503, message, "too_many_connections", None, "server_error", headers))(
        scope, receive, send
    )
