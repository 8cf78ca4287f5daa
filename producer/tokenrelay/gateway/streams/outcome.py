"""Waiting for a request's outcome while the client is connected, and the HTTP error of a failed one."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, assert_never

from tokenrelay.gateway.http.problems import NO_RETRY, Problem, problem_of
from tokenrelay.gateway.views.chat import failure_error, is_callers_fault
from tokenrelay.shared.wire.entries import State

if TYPE_CHECKING:
    from starlette.types import Receive

    from tokenrelay.gateway.records.record import Record
    from tokenrelay.gateway.streams.feed import Feed
    from tokenrelay.shared.wire.entries import Ended


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
