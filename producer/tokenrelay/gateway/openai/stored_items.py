"""What a body takes from earlier responses: the conversation that it continues, and answers that it names by their IDs
in place of repeating them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from tokenrelay.gateway.http.problems import Problem
from tokenrelay.gateway.openai.bodies.contents import refuse
from tokenrelay.gateway.views.response import ITEM_PREFIX, PREFIX
from tokenrelay.shared.errors import RequestNotFound, StreamError
from tokenrelay.shared.wire.answer import Assembler
from tokenrelay.shared.wire.entries import State

if TYPE_CHECKING:
    from tokenrelay.gateway.core.gateway import Gateway
    from tokenrelay.gateway.openai.bodies.contents import Reference
    from tokenrelay.gateway.openai.bodies.requests import ResponseBody
    from tokenrelay.gateway.records.record import Record
    from tokenrelay.gateway.tenancy.tenants import Tenant

MOST: Final = 256
"""References in one body: each is read from Redis."""
_PREVIOUS: Final = "previous_response_id"


async def with_stored(gateway: Gateway, tenant: Tenant, body: ResponseBody) -> ResponseBody:
    """The body with the conversation before it, and with the answers that it refers to in their places.

    Raises RedisUnusable, and Problem: 404 for an item and 400 for a previous response that isn't the tenant's or is
    gone, 400 for an unfinished one.
    """
    references = body.input.references
    if len(references) > MOST:
        refuse("input", f"has {len(references)} item references; {MOST} are possible")
    messages = list(body.input.messages)
    for reference in references:
        messages[reference.number] = _said(await _item(gateway, tenant, reference))
    if body.previous_response_id:
        messages = [*await _conversation(gateway, tenant, body.previous_response_id), *messages]
    return body.model_copy(update={"input": replace(body.input, messages=tuple(messages), references=())})


async def _conversation(gateway: Gateway, tenant: Tenant, response_id: str) -> list[dict[str, str]]:
    """What was said up to the response's end. Its `instructions` were its own."""
    try:
        record = await _record(gateway, tenant, response_id, PREFIX)
        answer = await _answer(gateway, record, _PREVIOUS)
        if record.state in (State.FAILED, State.EXPIRED):
            refuse(_PREVIOUS, f"is of a response that {record.state}; give one that was answered")
        asked = record.options["messages"]
        if asked is None:
            raise RequestNotFound("it was no conversation")
    except (RequestNotFound, StreamError):
        told = f"{_PREVIOUS}: no response {ascii(response_id)[:80]}: it never was, or its retention is over"
        raise Problem(400, told, "previous_response_not_found", _PREVIOUS) from None
    messages = [{"role": str(each["role"]), "content": each["content"]} for each in asked[record.mark.instructions :]]
    return [*messages, _said(answer)] if answer else messages


async def _item(gateway: Gateway, tenant: Tenant, reference: Reference) -> str:
    try:
        record = await _record(gateway, tenant, reference.item_id, ITEM_PREFIX)
        return await _answer(gateway, record, reference.path)
    except (RequestNotFound, StreamError):
        told = f"{reference.path}: no item {ascii(reference.item_id)[:80]}: it never was, or its retention is over"
        raise Problem(404, told, "not_found", reference.path) from None


async def _record(gateway: Gateway, tenant: Tenant, given: str, prefix: str) -> Record:
    request_id = given.removeprefix(prefix)
    if request_id == given:
        raise RequestNotFound("not an ID of ours")
    return await gateway.record(request_id, tenant)


async def _answer(gateway: Gateway, record: Record, path: str) -> str:
    attachment = await gateway.look(record)
    try:
        if not attachment.feed.over:
            refuse(path, "is of a response that isn't finished yet")
        assembler = Assembler(record.request_id)
        for entry in attachment.feed.entries:
            assembler.receive(entry)
        return assembler.text
    finally:
        attachment.leave()


def _said(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}
