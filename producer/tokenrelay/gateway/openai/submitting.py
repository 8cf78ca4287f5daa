"""An OpenAI body on its way to the queue, with its errors and its ignored fields told in the caller's words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenrelay.gateway.http.problems import Problem
from tokenrelay.gateway.openai.bodies import ignored
from tokenrelay.shared.errors import RequestError

if TYPE_CHECKING:
    from tokenrelay.gateway.core.gateway import Gateway
    from tokenrelay.gateway.openai.bodies.requests import Common
    from tokenrelay.gateway.records.marks import Mark
    from tokenrelay.gateway.records.record import Record
    from tokenrelay.gateway.tenancy.tenants import Tenant


async def submit_body(gateway: Gateway, tenant: Tenant, body: Common, mark: Mark, key: str | None) -> Record:
    """Queue what the body asks. Raises as Gateway.submit does; Problem 400, and 404 for a model that isn't served."""
    if body.unknown and gateway.settings.unknown_fields == "refuse":
        name = ignored.listed(body.unknown[:1])
        raise Problem(400, f"{name}: unknown field", "unknown_parameter", name)
    await gateway.check_model(body.model)
    options = {**body.options(), **({"idempotency_key": key} if key else {})}
    try:
        record = await gateway.submit(options, tenant, mark)
    except RequestError as error:
        raise body.in_callers_words(error) from None
    ignored.report(record.request_id, body.ignored)
    return record


def headers(record: Record, body: Common) -> dict[str, str]:
    """What every answer to the body says of it."""
    return {"X-Request-Id": record.request_id, **ignored.header(body.ignored)}
