"""OpenAI's Responses API: whole, streamed, or in the background; resumable from any event."""

from collections.abc import Mapping
from typing import Annotated, Any, Final

from fastapi import APIRouter, Query
from starlette.responses import Response

from tokenrelay.gateway.core.dependencies import GatewayDep, LastEventId, StartingAfter, TenantDep
from tokenrelay.gateway.core.gateway import Gateway
from tokenrelay.gateway.core.schemas import ERRORS, EVENTS
from tokenrelay.gateway.core.tenants import Tenant
from tokenrelay.gateway.http.problems import Problem, RangeGone, json_response
from tokenrelay.gateway.openai.bodies.request_bodies import ResponseBody
from tokenrelay.gateway.openai.stored_items import with_stored
from tokenrelay.gateway.openai.submission import CallerDep, answer_headers
from tokenrelay.gateway.records.record import Annotation, Record
from tokenrelay.gateway.streams.attachments import Attachment
from tokenrelay.gateway.streams.event_stream import Delivery, EventStream, Source
from tokenrelay.gateway.streams.feed import Feed
from tokenrelay.gateway.streams.positions import START, entry_after, sequence_after
from tokenrelay.gateway.views.logprobs import text_logprobs
from tokenrelay.gateway.views.response import PREFIX, ResponseEncoder, snapshot
from tokenrelay.producer._core.endings import cancel
from tokenrelay.shared.wire.answer import Assembler
from tokenrelay.shared.wire.entries import EntryId, State

router: Final = APIRouter(prefix="/v1/responses", tags=["openai"])
_ANSWERS: Final = {**ERRORS, 200: {**EVENTS[200], "description": "The response, or its events as server-sent events."}}


@router.post("", responses=_ANSWERS)
async def create(caller: CallerDep, body: ResponseBody) -> Response:
    """Create a response: whole, streamed, or in the background."""
    gateway, background = caller.gateway, bool(body.background)
    annotation = Annotation(
        api="responses",
        fleeting=caller.fleeting and not background,
        background=background,
        store=body.stored,
        instructions=bool(body.instructions),
        previous_response_id=body.previous_response_id or "",
        format_name=body.text.name if body.text else "",
    )
    body = await with_stored(gateway, caller.tenant, body)
    (record,) = await caller.submit(body, annotation)
    headers = answer_headers(record, body)
    if background and not body.stream:
        return json_response(snapshot(record, record.state), headers=headers)
    attachment = await gateway.attach(record, fresh=True)
    if body.stream:
        settings = gateway.settings
        delivery = Delivery(headers, settings.comment_s, 0.0 if background else settings.first_word_s)
        return await _streamed(gateway, attachment, -1, START, delivery)
    return await caller.wait([attachment], lambda: _current(record, attachment.feed), headers)


@router.get("/{response_id}", responses={**_ANSWERS, 204: EVENTS[204]})
async def retrieve(
    gateway: GatewayDep,
    tenant: TenantDep,
    response_id: str,
    stream: Annotated[bool, Query(description="Stream its events.")] = False,
    starting_after: StartingAfter = None,
    last_event_id: LastEventId = None,
) -> Response:
    """A response's current state, or its events after any sequence_number."""
    after = sequence_after(starting_after)
    entry = entry_after(None, last_event_id) if starting_after is None else START
    record = await _found(gateway, tenant, response_id)
    if stream:
        delivery = Delivery(_headers(record), gateway.settings.comment_s)
        return await _streamed(gateway, await gateway.attach(record, entry), after, entry, delivery)
    return await _whole(gateway, record, _headers(record))


@router.post("/{response_id}/cancel", responses=ERRORS)
async def cancel_response(gateway: GatewayDep, tenant: TenantDep, response_id: str) -> Response:
    """Cancel a response in any state. No-op for one that has ended."""
    record = await _found(gateway, tenant, response_id)
    await gateway.driver.run(cancel(record.request_id, "gateway"))
    return await _whole(gateway, await gateway.record(record.request_id, tenant), _headers(record))


async def _found(gateway: Gateway, tenant: Tenant, response_id: str) -> Record:
    if not response_id.startswith(PREFIX):
        raise Problem(
            404, f"no response {ascii(response_id)[:80]}: response IDs start with {PREFIX}", "not_found", "id"
        )
    return await gateway.record(response_id.removeprefix(PREFIX), tenant)


async def _streamed(
    gateway: Gateway, attachment: Attachment, sequence: int, entry: EntryId, delivery: Delivery
) -> Response:
    """The events after `sequence` or after `entry`, whichever is later."""
    try:
        feed, record = attachment.feed, attachment.feed.record
        if not feed.has_beginning:
            first, last = (str(each.entry_id) for each in (feed.entries[0], feed.entries[-1]))
            message = f"response {record.request_id}: its beginning is gone; the stream has entries {first} to {last}"
            raise RangeGone(message, request_id=record.request_id, first=first, last=last)
        view = feed.view("response", lambda: ResponseEncoder(record))
        if sequence >= len(view.events):
            await gateway.hub.catch_up(feed)
        if sequence >= len(view.events):
            last = str(len(view.events) - 1)
            message = f"response {record.request_id}: has no event {sequence}; it has events 0 to {last}"
            raise RangeGone(message, request_id=record.request_id, first="0", last=last)
        position = max(sequence + 1, view.position_after(entry))
        if feed.over and position >= len(view.events):
            attachment.leave()
            return Response(status_code=204)
        return EventStream([Source(attachment, view, position)], delivery)
    except BaseException:
        attachment.leave()
        raise


async def _whole(gateway: Gateway, record: Record, headers: Mapping[str, str]) -> Response:
    """The response's current state, with the answer so far."""
    attachment = await gateway.peek(record)
    try:
        return json_response(_current(record, attachment.feed), headers=headers)
    finally:
        attachment.leave()


def _current(record: Record, feed: Feed) -> dict[str, Any]:
    assembler = Assembler(record.request_id)
    for entry in feed.entries:
        assembler.receive(entry)
    # The stream was read after the record, but only the record reports an overdue request as expired.
    open_state = record.state if record.state.terminal else State(assembler.machine.state)
    state = feed.ended.state if feed.ended else open_state
    return snapshot(record, state, feed.ended, assembler.text, text_logprobs(assembler.tokens))


def _headers(record: Record) -> dict[str, str]:
    return {"X-Request-Id": record.request_id}
