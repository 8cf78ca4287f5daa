"""OpenAI's chat and plain completions."""

from typing import Final

from fastapi import APIRouter, Request
from starlette.responses import Response

from tokenrelay.gateway.asked import headers as answer_headers
from tokenrelay.gateway.asked import submit_body
from tokenrelay.gateway.asking import Asking, Here, IdempotencyHeader, LastEventId, StartingAfter, idempotency
from tokenrelay.gateway.bodies import ChatBody, CompletionBody, Streamed
from tokenrelay.gateway.gateway import Gateway
from tokenrelay.gateway.marks import Mark
from tokenrelay.gateway.records import Record
from tokenrelay.gateway.responses import EventStream, json_response
from tokenrelay.gateway.resuming import entry_after
from tokenrelay.gateway.schemas import ERRORS, EVENTS
from tokenrelay.gateway.tenants import Tenant
from tokenrelay.gateway.views.chat import Api, ChatEncoder, whole
from tokenrelay.gateway.waiting import answered, ended
from tokenrelay.shared.entries import EntryId

router: Final = APIRouter(prefix="/v1", tags=["openai"])
_ANSWERS: Final = {**ERRORS, 200: {**EVENTS[200], "description": "The answer, or server-sent events of its chunks."}}


@router.post("/chat/completions", responses=_ANSWERS)
async def chat_completions(
    request: Request,
    gateway: Here,
    tenant: Asking,
    body: ChatBody,
    idempotency_key: IdempotencyHeader = None,
    last_event_id: LastEventId = None,
    starting_after: StartingAfter = None,
) -> Response:
    """An answer to a conversation, streamed or in one piece."""
    after = entry_after(starting_after, last_event_id)
    record = await _submitted(gateway, tenant, body, "chat", idempotency(idempotency_key))
    return await _answer(request, gateway, record, body, "chat", after)


@router.post("/completions", responses=_ANSWERS)
async def completions(
    request: Request,
    gateway: Here,
    tenant: Asking,
    body: CompletionBody,
    idempotency_key: IdempotencyHeader = None,
    last_event_id: LastEventId = None,
    starting_after: StartingAfter = None,
) -> Response:
    """A text's continuation, streamed or in one piece."""
    after = entry_after(starting_after, last_event_id)
    record = await _submitted(gateway, tenant, body, "completion", idempotency(idempotency_key))
    return await _answer(request, gateway, record, body, "completion", after)


async def _submitted(gateway: Gateway, tenant: Tenant, body: Streamed, api: Api, key: str | None) -> Record:
    store = bool(body.store)
    mark = Mark(api=api, fleeting=key is None and not store, store=store)
    return await submit_body(gateway, tenant, body, mark, key)


async def _answer(
    request: Request, gateway: Gateway, record: Record, body: Streamed, api: Api, after: EntryId
) -> Response:
    attachment = await gateway.attach(record, after)
    try:
        headers = answer_headers(record, body)
        if body.stream:
            usage = body.include_usage
            view = attachment.feed.view(f"{api} {usage}", lambda: ChatEncoder(record, api, include_usage=usage))
            comment_s = gateway.settings.comment_s
            return EventStream(attachment, view, view.behind(after), comment_s=comment_s, headers=headers)
        try:
            if await ended(attachment, request) is None:
                return Response(status_code=499)  # nobody reads it
            return json_response(whole(record, api, answered(attachment)), headers=headers)
        finally:
            attachment.leave()
    except BaseException:
        attachment.leave()
        raise
