"""Resolves a body's references to earlier responses: `previous_response_id` and item references."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, assert_never

from tokenrelay.gateway.http.problems import Problem, refuse
from tokenrelay.gateway.views.response import ITEM_PREFIX, PREFIX
from tokenrelay.shared.errors import RequestNotFound, StreamError
from tokenrelay.shared.wire.answer import Assembler
from tokenrelay.shared.wire.entries import State

if TYPE_CHECKING:
    from tokenrelay.gateway.core.gateway import Gateway
    from tokenrelay.gateway.core.tenants import Tenant
    from tokenrelay.gateway.openai.bodies.contents import Reference
    from tokenrelay.gateway.openai.bodies.request_bodies import ResponseBody
    from tokenrelay.gateway.records.record import Record

MAX_REFERENCES: Final = 256
"""Limit of one body: each reference is one read from Redis."""
_PREVIOUS: Final = "previous_response_id"


async def with_stored(gateway: Gateway, tenant: Tenant, body: ResponseBody) -> ResponseBody:
    """The body with the previous conversation prepended and each item reference replaced by its text.

    Raises RedisUnusable, and Problem: 404 for an item and 400 for a previous response that isn't the tenant's or is
    gone, 400 for an unfinished one.
    """
    references = body.input.references
    if len(references) > MAX_REFERENCES:
        refuse("input", f"has {len(references)} item references; the limit is {MAX_REFERENCES}")
    messages = list(body.input.messages)
    for reference in references:
        messages[reference.number] = {**messages[reference.number], "content": await _item(gateway, tenant, reference)}
    if body.previous_response_id:
        messages = [*await _conversation(gateway, tenant, body.previous_response_id), *messages]
    return body.model_copy(update={"input": replace(body.input, messages=tuple(messages), references=())})


async def _conversation(gateway: Gateway, tenant: Tenant, response_id: str) -> list[dict[str, Any]]:
    """The response's messages and answer, without its `instructions`, which apply to that response only."""
    try:
        record = await _record(gateway, tenant, response_id, PREFIX)
        answer = await _answer(gateway, record, _PREVIOUS)
        match record.state:
            case State.FAILED | State.EXPIRED:
                refuse(_PREVIOUS, f"names a response that {record.state}; give one with an answer")
            case State.COMPLETED | State.INCOMPLETE | State.CANCELLED | State.QUEUED | State.IN_PROGRESS:
                pass  # a cancelled response has what it had said
            case _:
                assert_never(record.state)
        asked = record.options["messages"]
        if asked is None:
            raise RequestNotFound("not a conversation")
    except (RequestNotFound, StreamError):
        message = f"{_PREVIOUS}: no response {ascii(response_id)[:80]}: unknown ID, or past its retention"
        raise Problem(400, message, "previous_response_not_found", _PREVIOUS) from None
    messages = [dict(each) for each in asked[record.annotation.instructions :]]
    return [*messages, _assistant_message(answer)] if answer else messages


async def _item(gateway: Gateway, tenant: Tenant, reference: Reference) -> str:
    try:
        record = await _record(gateway, tenant, reference.item_id, ITEM_PREFIX)
        return await _answer(gateway, record, reference.path)
    except (RequestNotFound, StreamError):
        message = f"{reference.path}: no item {ascii(reference.item_id)[:80]}: unknown ID, or past its retention"
        raise Problem(404, message, "not_found", reference.path) from None


async def _record(gateway: Gateway, tenant: Tenant, given: str, prefix: str) -> Record:
    request_id = given.removeprefix(prefix)
    if request_id == given:
        raise RequestNotFound("not an ID of ours")
    return await gateway.record(request_id, tenant)


async def _answer(gateway: Gateway, record: Record, path: str) -> str:
    attachment = await gateway.peek(record)
    try:
        if not attachment.feed.over:
            refuse(path, "names a response that hasn't ended yet")
        assembler = Assembler(record.request_id)
        for entry in attachment.feed.entries:
            assembler.receive(entry)
        return assembler.text
    finally:
        attachment.leave()


def _assistant_message(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}
