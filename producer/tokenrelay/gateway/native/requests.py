"""/requests: submit, look, follow, cancel, trace, in our own vocabulary."""

from typing import Annotated, Any, Final

from fastapi import APIRouter, Body
from starlette.responses import Response

from tokenrelay.gateway.core.asking import Asking, Here, IdempotencyHeader, LastEventId, StartingAfter, idempotency
from tokenrelay.gateway.core.gateway import Gateway
from tokenrelay.gateway.core.schemas import ERRORS, EVENTS, Accepted, Status, inlined
from tokenrelay.gateway.http.replies import json_response
from tokenrelay.gateway.openai.bodies import ignored
from tokenrelay.gateway.openai.bodies.requests import in_callers_words, read_submission
from tokenrelay.gateway.records.record import Record
from tokenrelay.gateway.streams.event_stream import Delivery, EventStream
from tokenrelay.gateway.streams.resuming import START, entry_after
from tokenrelay.gateway.views.raw import RawEncoder
from tokenrelay.producer._core.endings import cancel
from tokenrelay.producer.trace import as_json, traced
from tokenrelay.shared.errors import RequestError
from tokenrelay.shared.options import json_schema
from tokenrelay.shared.wire.entries import EntryId

router: Final = APIRouter(prefix="/requests", tags=["requests"])
_BODY: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": inlined(json_schema())}},
    }
}


@router.post("", status_code=202, response_model=Accepted, responses=ERRORS, openapi_extra=_BODY)
async def submit(
    gateway: Here, tenant: Asking, body: Annotated[dict[str, Any], Body()], idempotency_key: IdempotencyHeader = None
) -> Response:
    """Queue a request. It is durable: once this answers, it ends in an answer or an error, whatever dies."""
    key = idempotency(idempotency_key, body.get("idempotency_key"))
    given, unused = read_submission(body)
    try:
        record = await gateway.submit({**given, **({"idempotency_key": key} if key else {})}, tenant)
    except RequestError as error:
        raise in_callers_words(error, body) from None
    ignored.report(record.request_id, unused)
    path = f"/requests/{record.request_id}"
    accepted = {"request_id": record.request_id, "model": record.model, "events": f"{path}/events"}
    return json_response(accepted, 202, {"Location": path, **ignored.header(unused)})


@router.get("/{request_id}", response_model=Status, responses=ERRORS)
async def status(gateway: Here, tenant: Asking, request_id: str) -> Response:
    """What a request is now."""
    return json_response((await gateway.record(request_id, tenant)).status())


@router.post("/{request_id}/cancel", response_model=Status, responses=ERRORS)
async def cancel_request(gateway: Here, tenant: Asking, request_id: str) -> Response:
    """End a request, wherever it is. One that has ended stays as it is."""
    record = await gateway.record(request_id, tenant)
    await gateway.run(cancel(record.request_id, "gateway"))
    return json_response((await gateway.record(request_id, tenant)).status())


@router.get("/{request_id}/events", responses={**ERRORS, **EVENTS})
async def events(
    gateway: Here,
    tenant: Asking,
    request_id: str,
    starting_after: StartingAfter = None,
    last_event_id: LastEventId = None,
) -> Response:
    """The request's stream as server-sent events, from the beginning or behind any entry, to its end."""
    after = entry_after(starting_after, last_event_id)
    return await raw_stream(gateway, await gateway.record(request_id, tenant), after)


async def raw_stream(gateway: Gateway, record: Record, after: EntryId = START) -> Response:
    """The events behind `after`. 204, which ends a browser's reconnecting, where it is the terminal one."""
    attachment = await gateway.attach(record, after)
    try:
        feed = attachment.feed
        if feed.ended is not None and after >= feed.ended.entry_id:
            attachment.leave()
            return Response(status_code=204)
        view = feed.view("raw", RawEncoder)
        headers = {"X-Request-Id": record.request_id}
        return EventStream(attachment, view, view.behind(after), Delivery(headers, gateway.settings.comment_s))
    except BaseException:
        attachment.leave()
        raise


@router.get("/{request_id}/trace", responses=ERRORS)
async def trace(gateway: Here, tenant: Asking, request_id: str) -> Response:
    """What the request went through, layer by layer: what `tokenrelay trace --json` prints."""
    record = await gateway.record(request_id, tenant)
    return json_response(as_json(await gateway.run(traced(record.request_id))))
