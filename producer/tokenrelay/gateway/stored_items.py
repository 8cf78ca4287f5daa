"""References to items of earlier responses: clients send them in place of the answer that they were given."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from tokenrelay.gateway.contents import refuse
from tokenrelay.gateway.problems import Problem
from tokenrelay.gateway.views.response import ITEM_PREFIX
from tokenrelay.shared.answer import Assembler
from tokenrelay.shared.errors import RequestNotFound, StreamError

if TYPE_CHECKING:
    from tokenrelay.gateway.bodies import ResponseBody
    from tokenrelay.gateway.contents import Reference
    from tokenrelay.gateway.gateway import Gateway
    from tokenrelay.gateway.tenants import Tenant

MOST: Final = 256
"""References in one body: each is read from Redis."""


async def with_stored_items(gateway: Gateway, tenant: Tenant, body: ResponseBody) -> ResponseBody:
    """The body with the answers that it refers to in their places.

    Raises RedisUnusable, and Problem: 404 for an item that isn't the tenant's or is gone, 400 for an unfinished one.
    """
    references = body.input.references
    if len(references) > MOST:
        refuse("input", f"has {len(references)} item references; {MOST} are possible")
    messages = list(body.input.messages)
    for reference in references:
        content = await _text(gateway, tenant, reference)
        messages[reference.number] = {"role": "assistant", "content": content}
    return body.model_copy(update={"input": replace(body.input, messages=tuple(messages), references=())})


async def _text(gateway: Gateway, tenant: Tenant, reference: Reference) -> str:
    request_id = reference.item_id.removeprefix(ITEM_PREFIX)
    try:
        if request_id == reference.item_id:
            raise RequestNotFound("not an item of ours")
        record = await gateway.record(request_id, tenant)
        attachment = await gateway.look(record)
    except (RequestNotFound, StreamError):
        told = f"{reference.path}: no item {ascii(reference.item_id)[:80]}: it never was, or its retention is over"
        raise Problem(404, told, "not_found", reference.path) from None
    try:
        if not attachment.feed.over:
            refuse(reference.path, "is an item of a response that isn't finished yet")
        assembler = Assembler(record.request_id)
        for entry in attachment.feed.entries:
            assembler.receive(entry)
        return assembler.text
    finally:
        attachment.leave()
