"""FastAPI dependencies of the routes: the gateway, the tenant, headers and query parameters."""

from typing import Annotated, cast

from fastapi import Depends, Header, Query, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from tokenrelay.gateway.core.gateway import Gateway
from tokenrelay.gateway.http.problems import Problem
from tokenrelay.gateway.tenancy.tenants import Tenant

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


def idempotency(given: str | None, in_body: object = None) -> str | None:
    """The idempotency key of header or body. Raises Problem 400 if they differ or the length is out of bounds."""
    if given is not None and not 1 <= len(given) <= _MAX_KEY_CHARS:
        message = f"Idempotency-Key: has {len(given)} characters; 1 to {_MAX_KEY_CHARS} are allowed"
        raise Problem(400, message, "invalid_request", "Idempotency-Key")
    if given is not None and in_body not in (None, given):
        message = "idempotency_key: differs from the header Idempotency-Key; give one of them"
        raise Problem(400, message, "invalid_request", "idempotency_key")
    return given


_MAX_KEY_CHARS = 256
