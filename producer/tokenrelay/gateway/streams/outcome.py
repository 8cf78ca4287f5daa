"""Waiting for a request's outcome while the client is connected, and the HTTP error of a failed one."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from tokenrelay.gateway.http.problems import NO_RETRY, Problem, problem_of
from tokenrelay.gateway.views.chat import failure_error, is_callers_fault
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


def whole_answer(feed: Feed) -> Answer:
    """The whole answer of a finished stream. Raises as `raise_if_failed`, and ProtocolError."""
    raise_if_failed(feed)
    return assemble(feed.request_id, feed.entries)


def raise_if_failed(feed: Feed) -> None:
    """Raises Problem if a finished stream has no answer, and StreamError."""
    if feed.error is not None:
        raise feed.error
    if feed.ended is not None and feed.ended.state not in _ANSWERS:
        raise failure_problem(feed.record, feed.ended)


def early_failure(feed: Feed) -> Problem | None:
    """The HTTP error of a request that failed before its first token, if it has."""
    if feed.last_id is not None and feed.last_id.token:
        return None
    if feed.error is not None:
        return problem_of(feed.error)
    if feed.ended is not None and feed.ended.state not in _ANSWERS:
        return failure_problem(feed.record, feed.ended)
    return None


def failure_problem(record: Record, ended: Ended) -> Problem:
    """The HTTP error of a request that ended without an answer, with a header against retries."""
    why = failure_error(record, ended)
    status = 400 if is_callers_fault(ended) else _STATUSES.get(ended.state, 500)
    headers = {**NO_RETRY, "X-Request-Id": record.request_id}
    return Problem(status, why["message"], why["code"], why["param"], why["type"], headers)
