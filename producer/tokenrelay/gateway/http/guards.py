"""Middleware around every route: counts, size and time limits for requests, path normalization, and the response
during shutdown.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from tokenrelay.gateway.http.problems import Problem, problem_response

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from tokenrelay.shared.metrics.measures import Tally

_CLOSE: Final = {"Connection": "close"}
_MOST_DISCARDED_BYTES: Final = 64 * 2**20
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_CLIENT_LEFT: Final = 499


class RequestCounter:
    """Counts each HTTP request by route, method and status when its response starts.

    By the route's pattern: paths are chosen by clients, and would be unbounded labels.
    """

    def __init__(self, app: ASGIApp, tally: Tally) -> None:
        self._app = app
        self._tally = tally

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = _CLIENT_LEFT

        async def counting_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                self._count(scope, status)
            await send(message)

        try:
            await self._app(scope, receive, counting_send)
        except Exception:
            if status == _CLIENT_LEFT:
                status = 500
                self._count(scope, status)
            raise
        if status == _CLIENT_LEFT:
            self._count(scope, status)

    def _count(self, scope: Scope, status: int) -> None:
        route = getattr(scope.get("route"), "path", "none")
        method = scope["method"] if scope["method"] in _METHODS else "other"
        self._tally.add(route, method, str(status))


class PathNormalizer:
    """Collapses repeated slashes in the path and drops a trailing one, since base URLs are written by hand. Also drops
    scheme and host of a whole URL, which a client sends to a proxy (RFC 9112, section 3.2.2).

    No redirect: few clients follow one for POST, and behind a TLS proxy it would lead to http://.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (scope["path"].endswith("/") or "//" in scope["path"]):
            parts = list(filter(None, scope["path"].split("/")))
            if scope["path"].startswith(("http://", "https://")):
                parts = parts[2:]
            # In place: outer middleware reads the route from the same scope.
            scope["path"] = "/" + "/".join(parts)
        await self._app(scope, receive, send)


class ShutdownGuard:
    """Answers 503 to requests that are cancelled at shutdown; uvicorn would answer a bare 500."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        began = scope["type"] != "http"

        async def tracking_send(message: Message) -> None:
            nonlocal began
            began = True
            await send(message)

        try:
            await self._app(scope, receive, tracking_send)
        except asyncio.CancelledError:
            if began:
                raise
            headers = {"Retry-After": "1", **_CLOSE}
            stopping = Problem(503, "the gateway is shutting down; retry", "stopping", None, "server_error", headers)
            await problem_response(stopping)(scope, receive, send)


class SizeGuard:
    """Reads the whole body before the route is called. Refuses a body that is too large (413) or too slow (408), by the
    bytes received and not by Content-Length, and headers that are too large (431)."""

    def __init__(self, app: ASGIApp, max_header_bytes: int, max_bytes: int, timeout_s: float) -> None:
        self._app = app
        self._max_header_bytes = max_header_bytes
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        size = len(scope["raw_path"]) + len(scope["query_string"]) + sum(len(n) + len(v) for n, v in scope["headers"])
        if size > self._max_header_bytes:
            if _has_body(scope["headers"]):
                await discard_body(receive, self._timeout_s)
            message = f"the headers are larger than the limit of {self._max_header_bytes} bytes"
            await problem_response(Problem(431, message, "headers_too_large", headers=_CLOSE))(scope, receive, send)
            return
        if not _has_body(scope["headers"]):
            await self._app(scope, receive, send)
            return
        try:
            async with asyncio.timeout(self._timeout_s):
                body, more = await self._body(receive)
        except TimeoutError:
            message = f"the body wasn't received within {self._timeout_s:g} s"
            await problem_response(Problem(408, message, "too_slow", headers=_CLOSE))(scope, receive, send)
            return
        if body is None:
            if more:
                await discard_body(receive, self._timeout_s)
            message = f"the body is larger than the limit of {self._max_bytes} bytes"
            problem = Problem(413, message, "body_too_large", headers=_CLOSE, extra={"limit": self._max_bytes})
            await problem_response(problem)(scope, receive, send)
            return
        pending: Message | None = {"type": "http.request", "body": body, "more_body": False}

        async def replaying_receive() -> Message:
            nonlocal pending
            first, pending = pending, None
            return first if first is not None else await receive()

        await self._app(scope, replaying_receive, send)

    async def _body(self, receive: Receive) -> tuple[bytes | None, bool]:
        """The body, or None if it's too large; and whether more of it follows. Partial if the client disconnected."""
        parts: list[bytes] = []
        size = 0
        while True:
            message = await receive()
            if message["type"] != "http.request":
                return b"".join(parts), False
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > self._max_bytes:
                return None, bool(message.get("more_body"))
            if not message.get("more_body"):
                return b"".join(parts), False


async def discard_body(receive: Receive, timeout_s: float) -> None:
    """Read and discard the rest of the body, up to a size and a time limit.

    A client that is still writing when the connection closes gets a reset instead of the response.
    """
    size = 0
    with suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            while size < _MOST_DISCARDED_BYTES:
                message = await receive()
                size += len(message.get("body", b""))
                if not message.get("more_body"):  # end of the body, or a disconnect
                    return


def _has_body(headers: list[tuple[bytes, bytes]]) -> bool:
    return any(name in (b"content-length", b"transfer-encoding") for name, _ in headers)
