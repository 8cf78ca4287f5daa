"""Followed requests as one stream of server-sent events; waiting for their outcome while the client is connected."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, assert_never

from starlette.responses import Response

from tokenrelay.gateway.http.chunks import chunk_writer, connection_aborter
from tokenrelay.gateway.http.problems import NO_RETRY, Problem, problem_of, problem_response
from tokenrelay.gateway.http.tasks import cancel_all
from tokenrelay.gateway.views.chat import failure_error, is_callers_fault
from tokenrelay.gateway.views.sse import COMMENT, encode
from tokenrelay.shared.wire.entries import State

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence

    from starlette.types import Receive, Scope, Send

    from tokenrelay.gateway.records.record import Record
    from tokenrelay.gateway.streams.attachments import Attachment
    from tokenrelay.gateway.streams.feed import Feed
    from tokenrelay.gateway.views.view import Encoder, View
    from tokenrelay.shared.wire.entries import Ended, EntryId

CLIENT_LEFT: Final = 499
"""nginx's status for a client that disconnected before the response."""
_STREAM_HEADERS: Final = {"Cache-Control": "no-store, no-transform", "X-Accel-Buffering": "no"}
"""no-transform: no compression by proxies; X-Accel-Buffering: no buffering by nginx. Both would delay tokens."""
_STUCK_S: Final = 30.0
"""Time limit for sending one chunk: a client that vanished without closing its connection reads nothing."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """Delivery of an event stream: headers, seconds between keep-alive comments, and how long the status may wait."""

    headers: Mapping[str, str]
    comment_s: float
    first_word_s: float = 0.0


@dataclass(slots=True, eq=False)
class Source:
    """What a stream sends of one request: the view's events from `position` on."""

    attachment: Attachment
    view: View
    position: int = 0

    @property
    def feed(self) -> Feed:
        return self.attachment.feed


def stream_view(
    attachment: Attachment, name: str, encoder: Callable[[], Encoder], after: EntryId, delivery: Delivery
) -> EventStream:
    """The events of the feed's view of that name after `after`. On an error, releases the attachment."""
    try:
        view = attachment.feed.view(name, encoder)
        return EventStream([Source(attachment, view, view.position_after(after))], delivery)
    except BaseException:
        attachment.leave()
        raise


def closing_error(sources: Sequence[Source]) -> bytes:
    """An event for what kept the first request that can't be read further from being read; empty where all were."""
    error = next((source.feed.error for source in sources if source.feed.error is not None), None)
    return b"" if error is None else encode(problem_of(error).body(), event="error")


class EventStream(Response):
    """Sends the events of its sources as they come, `closing` once all have ended, and releases the attachments when
    the response ends.

    The status waits up to `first_word_s` for the first source's first token, so that a request that fails before it
    gets an HTTP error status.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        sources: Sequence[Source],
        delivery: Delivery,
        closing: Callable[[Sequence[Source]], bytes] = closing_error,
    ) -> None:
        self._sources = sources
        self._closing = closing
        self._attachments = sources[0].attachment.attachments
        self._comment_s = delivery.comment_s
        self._first_word_s = delivery.first_word_s
        self._disconnected = self._begun = False
        self._write, self._abort = chunk_writer({}), connection_aborter({})
        self.status_code, self.background = 200, None
        self.init_headers({**_STREAM_HEADERS, **delivery.headers})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._write, self._abort = chunk_writer(scope), connection_aborter(scope)
        try:
            response = await self._early_response(receive)
            if response is None:
                await self._stream(receive, send)
            else:
                self._disconnected = True  # what else its call generates has no reader
                await response(scope, receive, send)
        finally:
            for source in self._sources:
                source.attachment.leave(disconnected=self._disconnected)

    async def _early_response(self, receive: Receive) -> Response | None:
        """The response instead of the stream, if the first request fails before its first token."""
        first = self._sources[0]
        if not self._first_word_s or first.position >= len(first.view.events) > 0:
            return None
        task = asyncio.current_task()
        assert task is not None
        with self._attachments.cancelled_at_shutdown(task):
            connected = await wait_or_disconnect(first.feed.has_output, receive, self._first_word_s)
        if not connected:
            return Response(status_code=CLIENT_LEFT)
        problem = early_failure(first.feed)
        return problem_response(problem) if problem else None

    async def _stream(self, receive: Receive, send: Send) -> None:
        """Send until the stream ends, the client disconnects or stops reading, or the gateway stops.

        The server aborts an unfinished response, so the client knows that it's incomplete. ShutdownGuard answers
        one that hasn't started.
        """
        sending, leaving = asyncio.create_task(self._send(send)), asyncio.create_task(wait_for_disconnect(receive))
        try:
            with self._attachments.cancelled_at_shutdown(sending):
                await asyncio.wait((sending, leaving), return_when=asyncio.FIRST_COMPLETED)
            if not sending.done():
                self._disconnected = True
            elif not sending.cancelled():
                sending.result()
            elif not self._begun:
                raise asyncio.CancelledError
        except TimeoutError:
            self._disconnected = True
            self._abort()
        finally:
            await cancel_all((sending, leaving))

    async def _send(self, send: Send) -> None:
        """Send all chunks. Raises TimeoutError if the client doesn't read."""
        self._begun = True
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        if len(self._sources) == 1:
            await self._relay(self._sources[0], send)
        else:
            await self._relay_all(send)
        if last := self._closing(self._sources):
            await _send_chunk(send, last)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _relay_all(self, send: Send) -> None:
        """Relay all sources at once: each chunk has whole events, so theirs interleave."""
        relays = [asyncio.create_task(self._relay(source, send)) for source in self._sources]
        try:
            await asyncio.gather(*relays)
        finally:
            await cancel_all(relays)

    async def _relay(self, source: Source, send: Send) -> None:
        async for chunk in self._chunks(source):
            await _send_chunk(send, chunk)

    async def _chunks(self, source: Source) -> AsyncIterator[bytes]:
        """Chunks that the feed doesn't write itself: the backlog, events the client was too slow for, and comments that
        keep proxies from closing the connection and detect a dead client."""
        feed, view = source.feed, source.view
        while True:
            if source.position < len(view.events):
                chunk = b"".join(view.events[source.position :])
                source.position = len(view.events)
                yield chunk
            elif feed.over:
                return
            elif (behind := await feed.follow(view, self._write, self._comment_s)) is None:
                source.position = len(view.events)
                yield COMMENT
            else:
                source.position = behind


async def _send_chunk(send: Send, chunk: bytes) -> None:
    async with asyncio.timeout(_STUCK_S):
        await send({"type": "http.response.body", "body": chunk, "more_body": True})


async def wait_or_disconnect(event: asyncio.Event, receive: Receive, timeout_s: float | None = None) -> bool:
    """Wait for the event. Returns False if the client disconnected first; True also after the timeout."""
    if event.is_set():
        return True
    happened, gone = asyncio.ensure_future(event.wait()), asyncio.ensure_future(wait_for_disconnect(receive))
    try:
        await asyncio.wait((happened, gone), timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        return event.is_set() or not gone.done()
    finally:
        happened.cancel()
        gone.cancel()


async def wait_for_disconnect(receive: Receive) -> None:
    """Return once the client has disconnected or has its whole response."""
    while (await receive())["type"] != "http.disconnect":
        pass


def raise_if_failed(feed: Feed) -> None:
    """Raises Problem if a finished stream has no answer, and StreamError."""
    if feed.error is not None:
        raise feed.error
    if feed.ended is not None and not feed.ended.state.is_answer:
        raise failure_problem(feed.record, feed.ended)


def early_failure(feed: Feed) -> Problem | None:
    """The HTTP error of a request that failed before its first token, if it has."""
    if feed.last_id is not None and feed.last_id.token:
        return None
    if feed.error is not None:
        return problem_of(feed.error)
    if feed.ended is not None and not feed.ended.state.is_answer:
        return failure_problem(feed.record, feed.ended)
    return None


def failure_problem(record: Record, ended: Ended) -> Problem:
    """The HTTP error of a request that ended without an answer, with a header against retries."""
    why = failure_error(record, ended)
    headers = {**NO_RETRY, "X-Request-Id": record.request_id}
    return Problem(_status(ended), why["message"], why["code"], why["param"], why["type"], headers)


def _status(ended: Ended) -> int:
    match ended.state:
        case State.CANCELLED:
            return 410
        case State.EXPIRED:
            return 503
        case State.FAILED:
            return 400 if is_callers_fault(ended) else 500
        case State.COMPLETED | State.INCOMPLETE | State.QUEUED | State.IN_PROGRESS:
            raise ValueError(f"a request that is {ended.state} has no error")
        case _:
            assert_never(ended.state)
