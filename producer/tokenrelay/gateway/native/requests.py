"""/requests: submit, status, events, cancel and trace, in tokenrelay's own format."""

from typing import Annotated, Any, Final

from fastapi import APIRouter, Body
from starlette.responses import Response

from tokenrelay.gateway.core.dependencies import GatewayDep, IdempotencyKey, ResumePosition, TenantDep
from tokenrelay.gateway.core.schemas import ERRORS, EVENTS, Accepted, Status, inlined
from tokenrelay.gateway.http.problems import Problem, json_response
from tokenrelay.gateway.openai.bodies import ignored
from tokenrelay.gateway.openai.bodies.submissions import read_submission, with_callers_field
from tokenrelay.gateway.streams.event_stream import Delivery, stream_view
from tokenrelay.gateway.views.raw import RawEncoder
from tokenrelay.producer._core.endings import cancel
from tokenrelay.producer._core.prompts import read_prompt
from tokenrelay.producer.trace import as_json, traced
from tokenrelay.shared.errors import RequestError
from tokenrelay.shared.options import json_schema
from tokenrelay.shared.request_fields import MAX_N

router: Final = APIRouter(prefix="/requests", tags=["requests"])
_SCHEMA: Final = inlined(json_schema())
_N: Final = {"type": "integer", "minimum": 1, "maximum": MAX_N, "description": "Number of choices, each a request."}
_BODY: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": {**_SCHEMA, "properties": {**_SCHEMA["properties"], "n": _N}}}},
    }
}


@router.post("", status_code=202, response_model=Accepted, responses=ERRORS, openapi_extra=_BODY)
async def submit(
    gateway: GatewayDep, tenant: TenantDep, key: IdempotencyKey, body: Annotated[dict[str, Any], Body()]
) -> Response:
    """Queue a request. Once accepted, it ends with an answer or an error even if workers or gateways fail."""
    if key is not None and body.get("idempotency_key") not in (None, key):
        message = "idempotency_key: differs from the header Idempotency-Key; give one of them"
        raise Problem(400, message, "invalid_request", "idempotency_key")
    given, ignored_paths = read_submission(body)
    n = given.pop("n", 1)
    try:
        record, *others = await gateway.submit([{**given, **({"idempotency_key": key} if key else {})}], tenant, n=n)
    except RequestError as error:
        raise with_callers_field(error, body) from None
    ignored.report(record.request_id, ignored_paths)
    path = f"/requests/{record.request_id}"
    choices = {"choices": [each.request_id for each in (record, *others)]} if others else {}
    accepted = {"request_id": record.request_id, "model": record.model, "events": f"{path}/events", **choices}
    return json_response(accepted, 202, {"Location": path, **ignored.header(ignored_paths)})


@router.get("/{request_id}", response_model=Status, responses=ERRORS)
async def status(gateway: GatewayDep, tenant: TenantDep, request_id: str) -> Response:
    """A request's current state."""
    return json_response((await gateway.record(request_id, tenant)).status())


@router.post("/{request_id}/cancel", response_model=Status, responses=ERRORS)
async def cancel_request(gateway: GatewayDep, tenant: TenantDep, request_id: str) -> Response:
    """Cancel a request in any state. No-op for one that has ended."""
    record = await gateway.record(request_id, tenant)
    await gateway.driver.run(cancel(record.request_id, "gateway"))
    return json_response((await gateway.record(request_id, tenant)).status())


@router.get("/{request_id}/events", responses={**ERRORS, **EVENTS})
async def events(gateway: GatewayDep, tenant: TenantDep, request_id: str, after: ResumePosition) -> Response:
    """The request's stream as server-sent events, from the beginning or after any entry.

    204 after the terminal one, which stops a browser's EventSource.
    """
    attachment = await gateway.attach(await gateway.record(request_id, tenant), after)
    ended = attachment.feed.ended
    if ended is not None and after >= ended.entry_id:
        attachment.leave()
        return Response(status_code=204)
    delivery = Delivery({"X-Request-Id": request_id}, gateway.settings.comment_s)
    return stream_view(attachment, "raw", RawEncoder, after, delivery)


@router.get("/{request_id}/trace", responses=ERRORS)
async def trace(gateway: GatewayDep, tenant: TenantDep, request_id: str) -> Response:
    """The request's trace, layer by layer, as `tokenrelay trace --json` prints it."""
    record = await gateway.record(request_id, tenant)
    return json_response(as_json(await gateway.driver.run(traced(record.request_id))))


@router.get("/{request_id}/prompt", responses=ERRORS)
async def prompt(gateway: GatewayDep, tenant: TenantDep, request_id: str) -> Response:
    """The prompt's tokens as the worker read them, none before; with their log-probabilities, where the request asks
    for them, from the answer's first token on."""
    record = await gateway.record(request_id, tenant)
    tokens = await gateway.driver.run(read_prompt(record.request_id))
    return json_response({"tokens": [token.as_json() for token in tokens]})
