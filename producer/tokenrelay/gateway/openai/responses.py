"""OpenAI's Responses API: streamed, in the background, and read again later from any event."""

from collections.abc import Mapping
from typing import Annotated, Any, Final

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from tokenrelay.gateway.core.asking import (
    Asking,
    Durable,
    Here,
    IdempotencyHeader,
    LastEventId,
    StartingAfter,
    idempotency,
)
from tokenrelay.gateway.core.gateway import Gateway
from tokenrelay.gateway.core.schemas import ERRORS, EVENTS
from tokenrelay.gateway.http.problems import Problem, RangeGone
from tokenrelay.gateway.http.replies import json_response
from tokenrelay.gateway.openai.bodies.requests import ResponseBody
from tokenrelay.gateway.openai.stored_items import with_stored
from tokenrelay.gateway.openai.submitting import headers as answer_headers
from tokenrelay.gateway.openai.submitting import submit_body
from tokenrelay.gateway.records.marks import Mark
from tokenrelay.gateway.records.record import Record
from tokenrelay.gateway.streams.attachments import Attachment
from tokenrelay.gateway.streams.event_stream import CLIENT_LEFT, Delivery, EventStream
from tokenrelay.gateway.streams.feed import Feed
from tokenrelay.gateway.streams.resuming import START, entry_after, sequence_after
from tokenrelay.gateway.streams.waiting import check_answered, waited
from tokenrelay.gateway.tenancy.tenants import Tenant
from tokenrelay.gateway.views.response import PREFIX, ResponseEncoder, snapshot
from tokenrelay.producer._core.endings import cancel
from tokenrelay.shared.wire.answer import Assembler
from tokenrelay.shared.wire.entries import EntryId, State

router: Final = APIRouter(prefix="/v1/responses", tags=["openai"])
_ANSWERS: Final = {**ERRORS, 200: {**EVENTS[200], "description": "The response, or server-sent events of it."}}


@router.post("", responses=_ANSWERS)
async def create(
    request: Request,
    gateway: Here,
    tenant: Asking,
    body: ResponseBody,
    idempotency_key: IdempotencyHeader = None,
    durable: Durable = False,
) -> Response:
    """Ask; the response comes streamed, in one piece, or in the background."""
    key, background = idempotency(idempotency_key), bool(body.background)
    mark = Mark(
        api="responses",
        fleeting=not (key or background or durable),
        background=background,
        store=body.stored,
        instructions=bool(body.instructions),
        previous_response_id=body.previous_response_id or "",
    )
    body = await with_stored(gateway, tenant, body)
    record = await submit_body(gateway, tenant, body, mark, key)
    headers = answer_headers(record, body)
    if background and not body.stream:
        return json_response(snapshot(record, record.state), headers=headers)
    attachment = await gateway.attach(record, fresh=True)
    if body.stream:
        settings = gateway.settings
        delivery = Delivery(headers, settings.comment_s, 0.0 if background else settings.first_word_s)
        return await _streamed(gateway, attachment, -1, START, delivery)
    departed = False
    try:
        departed = not await waited(attachment.feed.over_at, request.receive)
        if departed:
            return Response(status_code=CLIENT_LEFT)
        check_answered(attachment.feed)
        return json_response(_as_it_is(record, attachment.feed), headers=headers)
    finally:
        attachment.leave(departed=departed)


@router.get("/{response_id}", responses={**_ANSWERS, 204: EVENTS[204]})
async def retrieve(
    gateway: Here,
    tenant: Asking,
    response_id: str,
    stream: Annotated[bool, Query(description="Follow its events.")] = False,
    starting_after: StartingAfter = None,
    last_event_id: LastEventId = None,
) -> Response:
    """A response as it is now, or its events behind any sequence_number."""
    after = sequence_after(starting_after)
    entry = entry_after(None, last_event_id) if starting_after is None else START
    record = await _found(gateway, tenant, response_id)
    if stream:
        delivery = Delivery(_headers(record), gateway.settings.comment_s)
        return await _streamed(gateway, await gateway.attach(record, entry), after, entry, delivery)
    return await _whole(gateway, record, _headers(record))


@router.post("/{response_id}/cancel", responses=ERRORS)
async def cancel_response(gateway: Here, tenant: Asking, response_id: str) -> Response:
    """End a response, wherever it is. One that has ended stays as it is."""
    record = await _found(gateway, tenant, response_id)
    await gateway.run(cancel(record.request_id, "gateway"))
    return await _whole(gateway, await gateway.record(record.request_id, tenant), _headers(record))


async def _found(gateway: Gateway, tenant: Tenant, response_id: str) -> Record:
    if not response_id.startswith(PREFIX):
        raise Problem(404, f"no response {ascii(response_id)[:80]}: its ID begins with {PREFIX}", "not_found", "id")
    return await gateway.record(response_id.removeprefix(PREFIX), tenant)


async def _streamed(
    gateway: Gateway, attachment: Attachment, sequence: int, entry: EntryId, delivery: Delivery
) -> Response:
    """The events behind `sequence`, or behind an entry where that is given."""
    try:
        feed, record = attachment.feed, attachment.feed.record
        if not feed.whole:
            first, last = (str(each.entry_id) for each in (feed.entries[0], feed.entries[-1]))
            told = f"response {record.request_id}: its beginning is gone; entries {first} to {last} are left"
            raise RangeGone(told, request_id=record.request_id, first=first, last=last)
        view = feed.view("response", lambda: ResponseEncoder(record))
        if sequence >= len(view.events):
            await gateway.hub.catch_up(feed)
        if sequence >= len(view.events):
            last = str(len(view.events) - 1)
            told = f"response {record.request_id}: nothing can follow {sequence}; it has events 0 to {last}"
            raise RangeGone(told, request_id=record.request_id, first="0", last=last)
        position = max(sequence + 1, view.behind(entry))
        if feed.over and position >= len(view.events):
            attachment.leave()
            return Response(status_code=204)
        return EventStream(attachment, view, position, delivery)
    except BaseException:
        attachment.leave()
        raise


async def _whole(gateway: Gateway, record: Record, headers: Mapping[str, str]) -> Response:
    """The response as it is now, with as much of the answer as there is."""
    attachment = await gateway.look(record)
    try:
        return json_response(_as_it_is(record, attachment.feed), headers=headers)
    finally:
        attachment.leave()


def _as_it_is(record: Record, feed: Feed) -> dict[str, Any]:
    assembler = Assembler(record.request_id)
    for entry in feed.entries:
        assembler.receive(entry)
    # The stream was read after the record, which alone knows of a deadline that nobody wrote down yet.
    unended = record.state if record.state.terminal else State(assembler.machine.state)
    state = feed.ended.state if feed.ended else unended
    return snapshot(record, state, feed.ended, assembler.text)


def _headers(record: Record) -> dict[str, str]:
    return {"X-Request-Id": record.request_id}
