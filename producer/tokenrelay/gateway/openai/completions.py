"""OpenAI's chat completions and completions endpoints."""

from typing import Final

from fastapi import APIRouter
from starlette.responses import Response

from tokenrelay.gateway.core.dependencies import ResumePosition
from tokenrelay.gateway.core.schemas import ERRORS, EVENTS
from tokenrelay.gateway.openai.bodies.request_bodies import ChatBody, CompletionBody, Streamed
from tokenrelay.gateway.openai.choices import Completion, check_position
from tokenrelay.gateway.openai.submission import Caller, CallerDep, answer_headers
from tokenrelay.gateway.records.record import Annotation
from tokenrelay.gateway.streams.event_stream import CLIENT_LEFT, Delivery
from tokenrelay.gateway.views.chat import Api
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
    check_position(after, len(body.submissions()) * body.choices_each)
    annotation = Annotation(
        api=api,
        fleeting=caller.fleeting,
        store=bool(body.store),
        prompt_only=isinstance(body, CompletionBody) and body.prompt_only,
    )
    records = await caller.submit(body, annotation, body.choices_each)
    headers, settings = answer_headers(records[0], body), caller.gateway.settings
    attachments = await caller.gateway.attach_all(records, after)
    echoes = await caller.echoes(attachments)
    if echoes is None:
        return Response(status_code=CLIENT_LEFT)
    completion = Completion(records[0], api, body.choices_each, attachments, echoes)
    if body.stream:
        return completion.stream(body.usage_chunks, after, Delivery(headers, settings.comment_s, settings.first_word_s))
    return await caller.wait(attachments, completion.whole, headers)
