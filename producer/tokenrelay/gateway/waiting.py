"""Waiting for an answer in one piece, for as long as the client does."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from tokenrelay.gateway.problems import NO_RETRY, Problem
from tokenrelay.gateway.views.chat import CALLERS_FAULTS, ending
from tokenrelay.shared.answer import assemble
from tokenrelay.shared.entries import State

if TYPE_CHECKING:
    from starlette.requests import Request

    from tokenrelay.gateway.attachments import Attachment
    from tokenrelay.shared.answer import Answer
    from tokenrelay.shared.entries import Ended

_STATUSES: Final = {State.CANCELLED: 410, State.EXPIRED: 503}


async def ended(attachment: Attachment, request: Request) -> Ended | None:
    """How the request ended; None where the client left before. Raises StreamError, ProtocolError."""
    feed = attachment.feed
    over = asyncio.ensure_future(feed.over_at.wait())
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait((over, gone), return_when=asyncio.FIRST_COMPLETED)
    finally:
        over.cancel()
        gone.cancel()
    if feed.error is not None:
        raise feed.error
    return feed.ended


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def answered(attachment: Attachment) -> Answer:
    """The whole answer of an ended request. Raises Problem where it has none."""
    feed = attachment.feed
    answer = assemble(feed.request_id, feed.entries)
    if feed.ended is not None and feed.ended.state not in (State.COMPLETED, State.INCOMPLETE):
        raise failure(feed.ended)
    return answer


def failure(ended: Ended) -> Problem:
    """A request that ended without an answer. Clients are told not to send it again: it has had its turn."""
    why = ending(ended)
    status = 400 if why["code"] in CALLERS_FAULTS else _STATUSES.get(ended.state, 500)
    return Problem(status, why["message"], why["code"], why["param"], why["type"], dict(NO_RETRY))
