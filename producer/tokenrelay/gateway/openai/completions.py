"""OpenAI's chat and plain completions."""

from typing import Final

from fastapi import APIRouter, Request
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
from tokenrelay.gateway.http.replies import json_response
from tokenrelay.gateway.openai.bodies.requests import ChatBody, CompletionBody, Streamed
from tokenrelay.gateway.openai.submitting import headers as answer_headers
from tokenrelay.gateway.openai.submitting import submit_body
from tokenrelay.gateway.records.marks import Mark
from tokenrelay.gateway.records.record import Record
from tokenrelay.gateway.streams.attachments import Attachment
from tokenrelay.gateway.streams.event_stream import CLIENT_LEFT, Delivery, EventStream
from tokenrelay.gateway.streams.resuming import entry_after
from tokenrelay.gateway.streams.waiting import answered, waited
from tokenrelay.gateway.views.chat import Api, ChatEncoder, ToldUsage, whole
from tokenrelay.shared.wire.entries import EntryId

router: Final = APIRouter(prefix="/v1", tags=["openai"])
_ANSWERS: Final = {**ERRORS, 200: {**EVENTS[200], "description": "The answer, or server-sent events of its chunks."}}


@router.post("/chat/completions", responses=_ANSWERS)
async def chat_completions(
    request: Request,
    gateway: Here,
    tenant: Asking,
    body: ChatBody,
    idempotency_key: IdempotencyHeader = None,
    durable: Durable = False,
    last_event_id: LastEventId = None,
    starting_after: StartingAfter = None,
) -> Response:
    """An answer to a conversation, streamed or in one piece."""
    after = entry_after(starting_after, last_event_id)
    key = idempotency(idempotency_key)
    mark = Mark(api="chat", fleeting=not (key or durable), store=bool(body.store))
    record = await submit_body(gateway, tenant, body, mark, key)
    return await _answer(request, gateway, record, body, "chat", after)


@router.post("/completions", responses=_ANSWERS)
async def completions(
    request: Request,
    gateway: Here,
    tenant: Asking,
    body: CompletionBody,
    idempotency_key: IdempotencyHeader = None,
    durable: Durable = False,
    last_event_id: LastEventId = None,
    starting_after: StartingAfter = None,
) -> Response:
    """A text's continuation, streamed or in one piece."""
    after = entry_after(starting_after, last_event_id)
    key = idempotency(idempotency_key)
    mark = Mark(api="completion", fleeting=not (key or durable), store=bool(body.store))
    record = await submit_body(gateway, tenant, body, mark, key)
    return await _answer(request, gateway, record, body, "completion", after)


async def _answer(
    request: Request, gateway: Gateway, record: Record, body: Streamed, api: Api, after: EntryId
) -> Response:
    attachment = await gateway.attach(record, after, fresh=True)
    headers, settings = answer_headers(record, body), gateway.settings
    if body.stream:
        delivery = Delivery(headers, settings.comment_s, settings.first_word_s)
        return _streamed(attachment, api, after, delivery, body.told_usage)
    departed = False
    try:
        departed = not await waited(attachment.feed.over_at, request.receive)
        if departed:
            return Response(status_code=CLIENT_LEFT)
        return json_response(whole(record, api, answered(attachment.feed)), headers=headers)
    finally:
        attachment.leave(departed=departed)


def _streamed(attachment: Attachment, api: Api, after: EntryId, delivery: Delivery, told: ToldUsage) -> Response:
    feed = attachment.feed
    try:
        view = feed.view(f"{api} {told}", lambda: ChatEncoder(feed.record, api, told))
        return EventStream(attachment, view, view.behind(after), delivery)
    except BaseException:
        attachment.leave()
        raise
