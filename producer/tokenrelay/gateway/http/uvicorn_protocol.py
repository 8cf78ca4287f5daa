"""uvicorn's HTTP protocol class with additions: limits on connections, header size and header time; direct chunk writes
(see `chunks`); Upgrade headers are ignored; correct framing for HTTP/1.0.
"""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, ClassVar, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from tokenrelay.gateway.http.chunks import EXTENSION
from tokenrelay.gateway.http.json_responses import problem_response
from tokenrelay.gateway.http.problems import Problem
from tokenrelay.gateway.http.request_parser import RequestParser
from tokenrelay.gateway.http.unread_body import discard_body

if TYPE_CHECKING:
    from asyncio import TimerHandle
    from typing import Any

    from starlette.types import Receive, Scope, Send
    from uvicorn._types import ASGISendEvent
    from uvicorn.protocols.http.httptools_impl import RequestResponseCycle


_DISCARD_S: Final = 1.0


class LimitedProtocol(HttpToolsProtocol):
    """One connection. Closes it if the headers are too slow or too large.

    Pipelined requests are handled one at a time, so the current response owns the connection.
    """

    max_header_bytes: ClassVar[int] = 65_536
    header_timeout_s: ClassVar[float] = 20.0
    max_connections: ClassVar[int] = 4000

    _full = False
    _in_headers = True
    _header_bytes = 0
    _header_timer: TimerHandle | None = None

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.parser: RequestParser = RequestParser(self)  # type: ignore[assignment]

    @classmethod
    def with_limits(cls, max_header_bytes: int, header_timeout_s: float, max_connections: int) -> type[LimitedProtocol]:
        """A subclass with these limits; uvicorn creates an instance for each connection."""
        limits = {
            "max_header_bytes": max_header_bytes,
            "header_timeout_s": header_timeout_s,
            "max_connections": max_connections,
        }
        return type("LimitedProtocol", (cls,), limits)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        self._got_headers()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._in_headers:
            if self._header_timer is None:
                self._expect_headers()
            self._header_bytes += len(data)
        super().data_received(data)
        # After parsing: bytes that follow the headers in the same read belong to the body, which has its own limit.
        if self._in_headers and self._header_bytes > self.max_header_bytes and not self.transport.is_closing():
            self.send_400_response(f"the headers are larger than the limit of {self.max_header_bytes} bytes")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["extensions"] = {EXTENSION: {"write": self.write_chunk, "abort": self.transport.abort}}

    def write_chunk(self, chunk: bytes) -> bool:
        """Write a framed chunk: see `chunks.chunk_writer`."""
        if self._full or self.transport.is_closing():
            return False
        self.transport.write(chunk)
        return True

    def pause_writing(self) -> None:
        self._full = True
        super().pause_writing()

    def resume_writing(self) -> None:
        self._full = False
        super().resume_writing()

    def on_headers_complete(self) -> None:
        if self.parser.will_reparse:
            return  # this callback runs again in the second pass
        self._got_headers()
        self.app = _too_many_connections if len(self.connections) > self.max_connections else self.config.loaded_app
        super().on_headers_complete()
        if self.scope["http_version"] == "1.0":
            del self.scope["extensions"]
            _frame_as_http_1_0(self.cycle)

    def on_message_complete(self) -> None:
        if self.parser.will_reparse:
            return
        super().on_message_complete()
        self._in_headers, self._header_bytes = True, 0

    def _expect_headers(self) -> None:
        self._in_headers, self._header_bytes = True, 0
        self._header_timer = asyncio.get_running_loop().call_later(self.header_timeout_s, self._close)

    def _got_headers(self) -> None:
        self._in_headers = False
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


def _frame_as_http_1_0(cycle: RequestResponseCycle) -> None:
    """End a body of unknown length with the connection, and never send 100 Continue.

    uvicorn would use chunked encoding, which HTTP/1.0 lacks: clients would read the chunk sizes as content.
    """
    send, unframed = cycle.send, False
    cycle.waiting_for_100_continue = False

    async def unchunked_send(message: ASGISendEvent) -> None:
        nonlocal unframed
        if message["type"] == "http.response.start":
            unframed = not any(name.lower() == b"content-length" for name, _ in message["headers"])
            if unframed:
                cycle.chunked_encoding, cycle.expected_content_length = False, sys.maxsize
        elif unframed and message["type"] == "http.response.body" and not message.get("more_body"):
            cycle.expected_content_length = len(message["body"])
        await send(message)

    cycle.send = unchunked_send  # type: ignore[method-assign]
