"""OpenAI's chat completions and completions endpoints."""

from typing import Final

from fastapi import APIRouter, Request
from starlette.responses import Response

from tokenrelay.gateway.core.dependencies import (
    Durable,
    GatewayDep,
    IdempotencyHeader,
    LastEventId,
    StartingAfter,
    TenantDep,
    idempotency,
)
from tokenrelay.gateway.core.gateway import Gateway
from tokenrelay.gateway.core.schemas import ERRORS, EVENTS
from tokenrelay.gateway.http.problems import json_response
from tokenrelay.gateway.openai.bodies.request_bodies import ChatBody, CompletionBody, Streamed
from tokenrelay.gateway.openai.submission import headers as answer_headers
from tokenrelay.gateway.openai.submission import submit_body
from tokenrelay.gateway.records.record import Annotation, Record
from tokenrelay.gateway.streams.attachments import Attachment
from tokenrelay.gateway.streams.event_stream import CLIENT_LEFT, Delivery, EventStream
from tokenrelay.gateway.streams.outcome import wait_or_disconnect, whole_answer
from tokenrelay.gateway.streams.positions import entry_after
from tokenrelay.gateway.views.chat import Api, ChatEncoder, UsageChunks, whole_completion
from tokenrelay.shared.wire.entries import EntryId

router: Final = APIRouter(prefix="/v1", tags=["openai"])
_ANSWERS: Final = {
    **ERRORS,
    200: {**EVENTS[200], "description": "The completion, or its chunks as server-sent events."},
}


@router.post("/chat/completions", responses=_ANSWERS)
async def chat_completions(
    request: Request,
    gateway: GatewayDep,
    tenant: TenantDep,
    body: ChatBody,
    idempotency_key: IdempotencyHeader = None,
    durable: Durable = False,
    last_event_id: LastEventId = None,
    starting_after: StartingAfter = None,
) -> Response:
    """Answer a conversation, streamed or whole."""
    after = entry_after(starting_after, last_event_id)
    key = idempotency(idempotency_key)
    annotation = Annotation(api="chat", fleeting=not (key or durable), store=bool(body.store))
    record = await submit_body(gateway, tenant, body, annotation, key)
    return await _answer(request, gateway, record, body, "chat", after)


@router.post("/completions", responses=_ANSWERS)
async def completions(
    request: Request,
    gateway: GatewayDep,
    tenant: TenantDep,
    body: CompletionBody,
    idempotency_key: IdempotencyHeader = None,
    durable: Durable = False,
    last_event_id: LastEventId = None,
    starting_after: StartingAfter = None,
) -> Response:
    """Continue a text, streamed or whole."""
    after = entry_after(starting_after, last_event_id)
    key = idempotency(idempotency_key)
    annotation = Annotation(api="completion", fleeting=not (key or durable), store=bool(body.store))
    record = await submit_body(gateway, tenant, body, annotation, key)
    return await _answer(request, gateway, record, body, "completion", after)


async def _answer(
    request: Request, gateway: Gateway, record: Record, body: Streamed, api: Api, after: EntryId
) -> Response:
    attachment = await gateway.attach(record, after, fresh=True)
    headers, settings = answer_headers(record, body), gateway.settings
    if body.stream:
        delivery = Delivery(headers, settings.comment_s, settings.first_word_s)
        return _streamed(attachment, api, after, delivery, body.usage_chunks)
    disconnected = False
    try:
        disconnected = not await wait_or_disconnect(attachment.feed.finished, request.receive)
        if disconnected:
            return Response(status_code=CLIENT_LEFT)
        return json_response(whole_completion(record, api, whole_answer(attachment.feed)), headers=headers)
    finally:
        attachment.leave(disconnected=disconnected)


def _streamed(
    attachment: Attachment, api: Api, after: EntryId, delivery: Delivery, usage_chunks: UsageChunks
) -> Response:
    feed = attachment.feed
    try:
        view = feed.view(f"{api} {usage_chunks}", lambda: ChatEncoder(feed.record, api, usage_chunks))
        return EventStream(attachment, view, view.position_after(after), delivery)
    except BaseException:
        attachment.leave()
        raise
