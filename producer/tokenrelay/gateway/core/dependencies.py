"""FastAPI dependencies of the routes: the gateway, the tenant, headers and query parameters."""

from typing import Annotated, cast

from fastapi import Depends, Header, Query, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from tokenrelay.gateway.core.gateway import Gateway
from tokenrelay.gateway.core.tenants import Tenant
from tokenrelay.gateway.http.problems import Problem
from tokenrelay.gateway.streams.positions import entry_after
from tokenrelay.shared.wire.entries import EntryId

_MAX_KEY_CHARS = 256
_BEARER = HTTPBearer(auto_error=False, description="An API key. Required if the gateway has API keys configured.")


async def gateway_of(request: Request) -> Gateway:
    return cast("Gateway", request.app.state.gateway)


GatewayDep = Annotated[Gateway, Depends(gateway_of)]


Credentials = Annotated[HTTPAuthorizationCredentials | None, Security(_BEARER)]


async def tenant_of(gateway: GatewayDep, credentials: Credentials) -> Tenant:
    """The tenant that the request's API key belongs to. Raises Problem 401."""
    return gateway.tenants.tenant(credentials.credentials if credentials else None)


TenantDep = Annotated[Tenant, Depends(tenant_of)]
LastEventId = Annotated[str | None, Header(alias="Last-Event-ID", description="The `id:` of the last event received.")]
StartingAfter = Annotated[str | None, Query(description="Resume after this token or event.")]
IdempotencyHeader = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key", description="A repeat with the same key and body attaches to the existing request."
    ),
]

Durable = Annotated[
    bool,
    Header(
        alias="x-tokenrelay-durable",
        description="Extension: keep generating after the client disconnects; the answer can be read later.",
    ),
]


async def idempotency_key(given: IdempotencyHeader = None) -> str | None:
    """The header's idempotency key. Raises Problem 400 if its length is out of bounds."""
    if given is not None and not 1 <= len(given) <= _MAX_KEY_CHARS:
        message = f"Idempotency-Key: has {len(given)} characters; 1 to {_MAX_KEY_CHARS} are allowed"
        raise Problem(400, message, "invalid_request", "Idempotency-Key")
    return given


async def resume_position(starting_after: StartingAfter = None, last_event_id: LastEventId = None) -> EntryId:
    """The last entry that the client has. Raises Problem 400."""
    return entry_after(starting_after, last_event_id)


IdempotencyKey = Annotated[str | None, Depends(idempotency_key)]
ResumePosition = Annotated[EntryId, Depends(resume_position)]
