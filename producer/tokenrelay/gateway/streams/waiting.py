"""Waiting for an answer in one piece, or for its first word, for as long as the client does."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from tokenrelay.gateway.http.problems import NO_RETRY, Problem, problem_of
from tokenrelay.gateway.views.chat import ending, is_callers_fault
from tokenrelay.shared.wire.answer import assemble
from tokenrelay.shared.wire.entries import State

if TYPE_CHECKING:
    from starlette.types import Receive

    from tokenrelay.gateway.records.record import Record
    from tokenrelay.gateway.streams.feed import Feed
    from tokenrelay.shared.wire.answer import Answer
    from tokenrelay.shared.wire.entries import Ended

_STATUSES: Final = {State.CANCELLED: 410, State.EXPIRED: 503}
_ANSWERS: Final = (State.COMPLETED, State.INCOMPLETE)


async def waited(event: asyncio.Event, receive: Receive, timeout_s: float | None = None) -> bool:
    """Wait for the event. False where the client left first; True also after the timeout."""
    if event.is_set():
        return True
    there, gone = asyncio.ensure_future(event.wait()), asyncio.ensure_future(client_left(receive))
    try:
        await asyncio.wait((there, gone), timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        return event.is_set() or not gone.done()
    finally:
        there.cancel()
        gone.cancel()


async def client_left(receive: Receive) -> None:
    """Returns once the client has left, or has its whole response."""
    while (await receive())["type"] != "http.disconnect":
        pass


def answered(feed: Feed) -> Answer:
    """The whole answer of a stream that is over. Raises as `check_answered`, and ProtocolError."""
    check_answered(feed)
    return assemble(feed.request_id, feed.entries)


def check_answered(feed: Feed) -> None:
    """Raises Problem where a stream that is over ended without an answer, and StreamError."""
    if feed.error is not None:
        raise feed.error
    if feed.ended is not None and feed.ended.state not in _ANSWERS:
        raise failure(feed.record, feed.ended)


def refusal(feed: Feed) -> Problem | None:
    """Why there will be no first token, where that is known by now."""
    if feed.last_id is not None and feed.last_id.token:
        return None
    if feed.error is not None:
        return problem_of(feed.error)
    if feed.ended is not None and feed.ended.state not in _ANSWERS:
        return failure(feed.record, feed.ended)
    return None


def failure(record: Record, ended: Ended) -> Problem:
    """A request that ended without an answer. Clients are told not to send it again: it has had its turn."""
    why = ending(record, ended)
    status = 400 if is_callers_fault(ended) else _STATUSES.get(ended.state, 500)
    headers = {**NO_RETRY, "X-Request-Id": record.request_id}
    return Problem(status, why["message"], why["code"], why["param"], why["type"], headers)
