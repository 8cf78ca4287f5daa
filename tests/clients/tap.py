"""A wire tap: forwards every byte between a client and the gateway unchanged, and records the requests.

Each client process has its own tap and port, so the recorded requests are that process's.
"""

from __future__ import annotations

import asyncio
import json
import re
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final, Self

import httptools

_CHUNK: Final = 65_536
_HEAD_END: Final = b"\r\n\r\n"
_UPGRADE: Final = re.compile(rb"^upgrade:[^\n]*\n", re.IGNORECASE | re.MULTILINE)
_STOP_S: Final = 10.0


@dataclass(slots=True, eq=False)
class Call:
    """One HTTP request, and the status of its answer."""

    method: str = ""
    path: str = ""
    version: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    status: int = 0

    @property
    def agent(self) -> str:
        return self.headers.get("user-agent", "")

    @property
    def asked(self) -> dict[str, Any]:
        """The body's JSON object; empty where there is none."""
        try:
            parsed = json.loads(self.body)
        except ValueError:
            return {}
        return parsed if isinstance(parsed, dict) else {}


class _Requests:
    """What a client sends on one connection, as httptools' callbacks."""

    def __init__(self, all_calls: list[Call]) -> None:
        self._all = all_calls
        self.calls: list[Call] = []
        self._head: bytes | None = b""
        self._parser: Any = httptools.HttpRequestParser(self)

    def feed(self, data: bytes) -> None:
        if self._head is not None:
            data = self._head = self._head + data
            if _HEAD_END not in data:
                return
            # The gateway answers an offered upgrade in HTTP/1.1; the parser would stop at it.
            head, _, body = data.partition(_HEAD_END)
            data, self._head = _UPGRADE.sub(b"", head + b"\r\n") + b"\r\n" + body, None
        with suppress(httptools.HttpParserError):  # no HTTP/1: it's forwarded, and isn't a call
            self._parser.feed_data(data)

    def on_message_begin(self) -> None:
        call = Call()
        self._all.append(call)
        self.calls.append(call)

    def on_url(self, url: bytes) -> None:
        self.calls[-1].path += url.decode("latin-1")

    def on_header(self, name: bytes, value: bytes) -> None:
        self.calls[-1].headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self.calls[-1].method = self._parser.get_method().decode()
        self.calls[-1].version = self._parser.get_http_version()

    def on_body(self, body: bytes) -> None:
        self.calls[-1].body += body

    def on_message_complete(self) -> None:
        self._head = b""


class _Answers:
    """What the gateway sends on that connection."""

    def __init__(self, calls: list[Call]) -> None:
        self._calls = calls
        self._answered = 0
        self._parser: Any = httptools.HttpResponseParser(self)

    def feed(self, data: bytes) -> None:
        with suppress(httptools.HttpParserError):
            self._parser.feed_data(data)

    def on_headers_complete(self) -> None:
        if self._answered < len(self._calls):
            self._calls[self._answered].status = self._parser.get_status_code()

    def on_message_complete(self) -> None:
        self._answered += self._parser.get_status_code() >= 200


class Tap:
    """Listens on `url` while the `with` block lasts, and forwards to `upstream`, an http:// address."""

    def __init__(self, upstream: str) -> None:
        host, _, port = upstream.removeprefix("http://").partition(":")
        self._upstream = (host, int(port))
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="tap")
        self._open: set[asyncio.StreamWriter] = set()
        self.calls: list[Call] = []
        self.url = ""

    def __enter__(self) -> Self:
        self._thread.start()
        starting = asyncio.start_server(self._connected, "127.0.0.1", 0)
        self._server = asyncio.run_coroutine_threadsafe(starting, self._loop).result()
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(_STOP_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _stop(self) -> None:
        self._server.close()
        for writer in self._open:
            writer.close()
        await asyncio.gather(*(task for task in asyncio.all_tasks() if task is not asyncio.current_task()))
        await asyncio.sleep(0)  # the last transports' callbacks

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        requests = _Requests(self.calls)
        try:
            up_reader, up_writer = await asyncio.open_connection(*self._upstream)
        except OSError:
            writer.close()
            return
        both = {writer, up_writer}
        self._open |= both
        await asyncio.gather(
            _forward(reader, up_writer, requests), _forward(up_reader, writer, _Answers(requests.calls))
        )
        self._open -= both
        for each in both:
            each.close()


async def _forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, noted: _Requests | _Answers) -> None:
    """Forward until the end, which is handed on as it came; where one side is gone, so is the other."""
    try:
        while data := await reader.read(_CHUNK):
            noted.feed(data)
            writer.write(data)
            await writer.drain()
        writer.write_eof()
    except (OSError, RuntimeError):  # uvloop's writers raise the latter once they are closed
        writer.close()
