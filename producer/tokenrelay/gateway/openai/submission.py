"""Submits an OpenAI body, and reports errors and ignored fields by the caller's field names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenrelay.gateway.http.problems import Problem
from tokenrelay.gateway.openai.bodies import ignored
from tokenrelay.shared.errors import RequestError

if TYPE_CHECKING:
    from tokenrelay.gateway.core.gateway import Gateway
    from tokenrelay.gateway.openai.bodies.request_bodies import Common
    from tokenrelay.gateway.records.record import Annotation, Record
    from tokenrelay.gateway.tenancy.tenants import Tenant


async def submit_body(
    gateway: Gateway, tenant: Tenant, body: Common, annotation: Annotation, key: str | None
) -> Record:
    """Queue the body's request. Raises as Gateway.submit; Problem 400, and 404 for a model that isn't served."""
    if body.unknown and gateway.settings.unknown_fields == "refuse":
        name = ignored.listed(body.unknown[:1])
        raise Problem(400, f"{name}: unknown field", "unknown_parameter", name)
    await gateway.check_model(body.model)
    options = {**body.options(), **({"idempotency_key": key} if key else {})}
    try:
        record = await gateway.submit(options, tenant, annotation)
    except RequestError as error:
        raise body.with_callers_field(error) from None
    ignored.report(record.request_id, body.ignored)
    return record


def headers(record: Record, body: Common) -> dict[str, str]:
    """Headers of every response to the body."""
    return {"X-Request-Id": record.request_id, **ignored.header(body.ignored)}
