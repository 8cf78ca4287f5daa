"""The HTTP responses of the gateway: event streams and JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from sse_starlette import EventSourceResponse
from sse_starlette.event import ServerSentEvent
from sse_starlette.sse import SendTimeoutError
from starlette.responses import Response

from tokenrelay.gateway.chunks import writer
from tokenrelay.gateway.problems import Problem, problem_of
from tokenrelay.gateway.records import as_json
from tokenrelay.gateway.views.sse import encode

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from starlette.types import Message, Receive, Scope, Send

    from tokenrelay.gateway.attachments import Attachment
    from tokenrelay.gateway.views.view import View

_STREAM_HEADERS: Final = {"Cache-Control": "no-store, no-transform"}
"""no-transform: a proxy that compressed the stream would hold it back. X-Accel-Buffering comes from the library."""
_STUCK_S: Final = 30.0
"""How long a client may take to take a comment: one that is gone without a word takes nothing."""
_COMMENT: Final = ServerSentEvent(comment="waiting", sep="\n")


class EventStream(EventSourceResponse):
    """A view's events from `position` on, and the attachment's end with the response's, however that ends."""

    def __init__(
        self, attachment: Attachment, view: View, position: int, *, comment_s: float, headers: Mapping[str, str]
    ) -> None:
        self._attachment = attachment
        self._view = view
        self._position = position
        self._write = writer({})
        super().__init__(
            self._chunks(),
            headers={**_STREAM_HEADERS, **headers},
            ping=comment_s,
            sep="\n",
            ping_message_factory=lambda: _COMMENT,
            send_timeout=_STUCK_S,
        )
        del self.headers["connection"]  # the library's keep-alive: whether it is kept is for the server to say

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._write = writer(scope)
        try:
            await super().__call__(scope, receive, send)
        except SendTimeoutError:
            return  # the server closes a response that wasn't ended
        finally:
            self._attachment.leave()

    async def _chunks(self) -> AsyncIterator[bytes]:
        """What the feed can't write itself: events that were there before the reader, or that it was too slow for."""
        feed, events = self._attachment.feed, self._view.events
        while True:
            if self._position < len(events):
                chunk = b"".join(events[self._position :])
                self._position = len(events)
                yield chunk
            elif feed.error is not None:
                yield encode(problem_of(feed.error).body(), event="error")
                return
            elif feed.over:
                return
            else:
                self._position = await feed.follow(self._view, self._write)

    async def _send_with_timeout(self, send: Send, message: Message) -> None:
        """The library's, for comments alone: a timer for each event of each reader is a fifth of the gateway's time."""
        if message.get("body", b"").startswith(b":"):
            await super()._send_with_timeout(send, message)
        else:
            await send(message)


def json_response(value: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """`value` as JSON. Status as given."""
    return Response(as_json(value), status, dict(headers or {}), "application/json")


def problem_response(problem: Problem) -> Response:
    """The problem as OpenAI's clients expect it."""
    body: dict[str, Any] = problem.body()
    return json_response(body, problem.status, problem.headers)
