"""A followed request as a stream of server-sent events."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from starlette.responses import Response

from tokenrelay.gateway.http.chunks import aborter, writer
from tokenrelay.gateway.http.problems import problem_of
from tokenrelay.gateway.http.replies import problem_response
from tokenrelay.gateway.http.tasks import stop
from tokenrelay.gateway.streams.waiting import client_left, refusal, waited
from tokenrelay.gateway.views.sse import COMMENT, encode

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from starlette.types import Receive, Scope, Send

    from tokenrelay.gateway.streams.attachments import Attachment
    from tokenrelay.gateway.views.view import View

CLIENT_LEFT: Final = 499
"""nginx's word in the metrics for an answer that nobody was there to read."""
_STREAM_HEADERS: Final = {"Cache-Control": "no-store, no-transform", "X-Accel-Buffering": "no"}
"""A proxy that compressed the stream (no-transform) or buffered it (nginx's header) would hold tokens back."""
_STUCK_S: Final = 30.0
"""How long a client may take to take a piece: one that is gone without a word takes nothing."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """How an event stream is sent: seconds between comments while it's silent, and for how long its status may wait."""

    headers: Mapping[str, str]
    comment_s: float
    first_word_s: float = 0.0


class EventStream(Response):
    """A view's events from `position` on, and the attachment's end with the response's, however that ends.

    Its status waits up to `first_word_s` for the first token: a request that fails before is answered as a whole
    answer would be.
    """

    media_type = "text/event-stream"

    def __init__(self, attachment: Attachment, view: View, position: int, delivery: Delivery) -> None:
        self._attachment = attachment
        self._view = view
        self._position = position
        self._comment_s = delivery.comment_s
        self._first_word_s = delivery.first_word_s
        self._departed = self._begun = False
        self._write, self._abort = writer({}), aborter({})
        self.status_code, self.background = 200, None
        self.init_headers({**_STREAM_HEADERS, **delivery.headers})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._write, self._abort = writer(scope), aborter(scope)
        try:
            response = await self._first_word(receive)
            if response is None:
                await self._stream(receive, send)
            else:
                await response(scope, receive, send)
        finally:
            self._attachment.leave(departed=self._departed)

    async def _first_word(self, receive: Receive) -> Response | None:
        """What to answer instead of the stream, once that can be told."""
        feed = self._attachment.feed
        if not self._first_word_s or self._position >= len(self._view.events) > 0:
            return None
        task = asyncio.current_task()
        assert task is not None
        with self._attachment.ending_with_the_gateway(task):
            came = await waited(feed.spoken, receive, self._first_word_s)
        if not came:
            self._departed = True
            return Response(status_code=CLIENT_LEFT)
        problem = refusal(feed)
        return problem_response(problem) if problem else None

    async def _stream(self, receive: Receive, send: Send) -> None:
        """Send until the end, or until the client leaves or takes nothing, or the gateway stops.

        The server cuts off a response that wasn't ended, so that its client knows that there is more to come. One that
        wasn't begun is for the guards to answer (StopGuard).
        """
        sending, leaving = asyncio.create_task(self._send(send)), asyncio.create_task(client_left(receive))
        try:
            with self._attachment.ending_with_the_gateway(sending):
                await asyncio.wait((sending, leaving), return_when=asyncio.FIRST_COMPLETED)
            if not sending.done():
                self._departed = True
            elif not sending.cancelled():
                sending.result()
            elif not self._begun:
                raise asyncio.CancelledError
        except TimeoutError:
            self._departed = True
            self._abort()
        finally:
            await stop((sending, leaving))

    async def _send(self, send: Send) -> None:
        """Raises TimeoutError where the client is stuck."""
        self._begun = True
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async for chunk in self._chunks():
            async with asyncio.timeout(_STUCK_S):
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _chunks(self) -> AsyncIterator[bytes]:
        """What the feed can't write itself: events that were there before the reader, or that it was too slow for; and
        comments, which show proxies that the connection is alive, and us that the client is."""
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
            elif (behind := await feed.follow(self._view, self._write, self._comment_s)) is None:
                self._position = len(events)
                yield COMMENT
            else:
                self._position = behind
