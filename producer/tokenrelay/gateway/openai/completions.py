"""OpenAI's chat completions and completions endpoints."""

from typing import Final

from fastapi import APIRouter
from starlette.responses import Response

from tokenrelay.gateway.core.dependencies import ResumePosition
from tokenrelay.gateway.core.schemas import ERRORS, EVENTS
from tokenrelay.gateway.openai.bodies.request_bodies import ChatBody, CompletionBody, Streamed
from tokenrelay.gateway.openai.submission import Caller, CallerDep, answer_headers
from tokenrelay.gateway.records.record import Annotation
from tokenrelay.gateway.streams.event_stream import Delivery, stream_view
from tokenrelay.gateway.views.chat import Api, ChatEncoder, whole_completion
from tokenrelay.shared.wire.answer import assemble
from tokenrelay.shared.wire.entries import EntryId

router: Final = APIRouter(prefix="/v1", tags=["openai"])
_ANSWERS: Final = {
    **ERRORS,
    200: {**EVENTS[200], "description": "The completion, or its chunks as server-sent events."},
}


@router.post("/chat/completions", responses=_ANSWERS)
async def chat_completions(caller: CallerDep, after: ResumePosition, body: ChatBody) -> Response:
    """Answer a conversation, streamed or whole."""
    return await _answer(caller, body, "chat", after)


@router.post("/completions", responses=_ANSWERS)
async def completions(caller: CallerDep, after: ResumePosition, body: CompletionBody) -> Response:
    """Continue a text, streamed or whole."""
    return await _answer(caller, body, "completion", after)


async def _answer(caller: Caller, body: Streamed, api: Api, after: EntryId) -> Response:
    record = await caller.submit(body, Annotation(api=api, fleeting=caller.fleeting, store=bool(body.store)))
    attachment = await caller.gateway.attach(record, after, fresh=True)
    headers, settings = answer_headers(record, body), caller.gateway.settings
    if body.stream:
        delivery = Delivery(headers, settings.comment_s, settings.first_word_s)
        name, chunks = f"{api} {body.usage_chunks}", body.usage_chunks
        return stream_view(attachment, name, lambda: ChatEncoder(record, api, chunks), after, delivery)
    return await caller.wait(
        attachment, lambda feed: whole_completion(record, api, assemble(record.request_id, feed.entries)), headers
    )
