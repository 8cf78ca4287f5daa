"""The HTTP responses of the gateway: event streams and JSON."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from sse_starlette import EventSourceResponse
from sse_starlette.event import ServerSentEvent
from sse_starlette.sse import SendTimeoutError
from starlette.responses import Response

from tokenrelay.gateway.chunks import writer
from tokenrelay.gateway.problems import Problem, problem_of
from tokenrelay.gateway.records import as_json
from tokenrelay.gateway.views.sse import encode
from tokenrelay.gateway.waiting import refusal, waited

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from starlette.types import Message, Receive, Scope, Send

    from tokenrelay.gateway.attachments import Attachment
    from tokenrelay.gateway.views.view import View

CLIENT_LEFT: Final = 499
"""nginx's word in the metrics for an answer that nobody was there to read."""
_STREAM_HEADERS: Final = {"Cache-Control": "no-store, no-transform"}
"""no-transform: a proxy that compressed the stream would hold it back. X-Accel-Buffering comes from the library."""
_STUCK_S: Final = 30.0
"""How long a client may take to take a comment: one that is gone without a word takes nothing."""
_COMMENT: Final = ServerSentEvent(comment="waiting", sep="\n")


@dataclass(frozen=True, slots=True)
class Delivery:
    """How an event stream is sent: seconds between comments while it's silent, and for how long its status may wait."""

    headers: Mapping[str, str]
    comment_s: float
    first_word_s: float = 0.0


class EventStream(EventSourceResponse):
    """A view's events from `position` on, and the attachment's end with the response's, however that ends.

    Its status waits up to `first_word_s` for the first token: a request that fails before is answered as a whole
    answer would be.
    """

    def __init__(self, attachment: Attachment, view: View, position: int, delivery: Delivery) -> None:
        self._attachment = attachment
        self._view = view
        self._position = position
        self._first_word_s = delivery.first_word_s
        self._departed = False
        self._write = writer({})
        super().__init__(
            self._chunks(),
            headers={**_STREAM_HEADERS, **delivery.headers},
            ping=delivery.comment_s,
            sep="\n",
            ping_message_factory=lambda: _COMMENT,
            send_timeout=_STUCK_S,
            client_close_handler_callable=self._depart,
        )
        del self.headers["connection"]  # the library's keep-alive: whether it is kept is for the server to say

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._write = writer(scope)
        try:
            response = await self._first_word(receive)
            if response is None:
                await super().__call__(scope, receive, send)
            else:
                await response(scope, receive, send)
        except SendTimeoutError:
            self._departed = True  # the server closes a response that wasn't ended
        finally:
            self._attachment.leave(departed=self._departed)

    async def _first_word(self, receive: Receive) -> Response | None:
        """What to answer instead of the stream, once that can be told."""
        feed = self._attachment.feed
        if not self._first_word_s or self._position >= len(self._view.events) > 0:
            return None
        if not await waited(feed.spoken, receive, self._first_word_s):
            self._departed = True
            return Response(status_code=CLIENT_LEFT)
        problem = refusal(feed)
        return problem_response(problem) if problem else None

    async def _depart(self, _: Message) -> None:
        self._departed = True

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
