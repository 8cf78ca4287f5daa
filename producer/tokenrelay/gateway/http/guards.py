"""What stands around every route: limits on the size and the time of what comes in, paths as they were meant, and the
answer to whom a stopping server gives up.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from tokenrelay.gateway.http.draining import drain
from tokenrelay.gateway.http.problems import Problem
from tokenrelay.gateway.http.replies import problem_response

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

_CLOSE: Final = {"Connection": "close"}


class PathGuard:
    """Takes slashes too many in a path for one, and none for the last one: base URLs are written by hand. A redirect
    would be followed by few clients, and to http:// behind a proxy that speaks TLS."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (scope["path"].endswith("/") or "//" in scope["path"]):
            # In place: what stands around this one reads the route from the same scope.
            scope["path"] = "/" + "/".join(filter(None, scope["path"].split("/")))
        await self._app(scope, receive, send)


class StopGuard:
    """Answers 503 to whom the stopping server no longer waits for: uvicorn's own word is a bare 500."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        began = scope["type"] != "http"

        async def told(message: Message) -> None:
            nonlocal began
            began = True
            await send(message)

        try:
            await self._app(scope, receive, told)
        except asyncio.CancelledError:
            if began:
                raise
            headers = {"Retry-After": "1", **_CLOSE}
            stopping = Problem(503, "the gateway is stopping; ask again", "stopping", None, "server_error", headers)
            await problem_response(stopping)(scope, receive, send)


class SizeGuard:
    """Takes in a body whole before the route is called. Refuses one that is too large (413) or too slow (408), by what
    really comes and not by what was announced; and headers that are too large (431)."""

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
            if _announced(scope["headers"]):
                await drain(receive, self._timeout_s)
            told = f"the headers are larger than {self._max_header_bytes} bytes, which is the limit here"
            await problem_response(Problem(431, told, "headers_too_large", headers=_CLOSE))(scope, receive, send)
            return
        if not _announced(scope["headers"]):
            await self._app(scope, receive, send)
            return
        try:
            async with asyncio.timeout(self._timeout_s):
                body, more = await self._body(receive)
        except TimeoutError:
            told = f"the body hasn't come within {self._timeout_s:g} s"
            await problem_response(Problem(408, told, "too_slow", headers=_CLOSE))(scope, receive, send)
            return
        if body is None:
            if more:
                await drain(receive, self._timeout_s)
            told = f"the body is larger than {self._max_bytes} bytes, which is the limit here"
            problem = Problem(413, told, "body_too_large", headers=_CLOSE, extra={"limit": self._max_bytes})
            await problem_response(problem)(scope, receive, send)
            return
        message: Message | None = {"type": "http.request", "body": body, "more_body": False}

        async def replayed() -> Message:
            nonlocal message
            first, message = message, None
            return first if first is not None else await receive()

        await self._app(scope, replayed, send)

    async def _body(self, receive: Receive) -> tuple[bytes | None, bool]:
        """All of it; None where it's too large, and whether more would come; what came where the client has gone."""
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


def _announced(headers: list[tuple[bytes, bytes]]) -> bool:
    return any(name in (b"content-length", b"transfer-encoding") for name, _ in headers)
