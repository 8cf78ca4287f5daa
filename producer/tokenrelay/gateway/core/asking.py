"""What routes take from an HTTP request: the gateway, the tenant, headers."""

from typing import Annotated, cast

from fastapi import Depends, Header, Query, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from tokenrelay.gateway.core.gateway import Gateway
from tokenrelay.gateway.http.problems import Problem
from tokenrelay.gateway.tenancy.tenants import Tenant

_BEARER = HTTPBearer(auto_error=False, description="An API key, where the operator has set some.")


async def gateway_of(request: Request) -> Gateway:
    return cast("Gateway", request.app.state.gateway)


Here = Annotated[Gateway, Depends(gateway_of)]


Credentials = Annotated[HTTPAuthorizationCredentials | None, Security(_BEARER)]


async def tenant_of(gateway: Here, credentials: Credentials) -> Tenant:
    """Whose key the request has. Raises Problem 401."""
    return gateway.tenants.tenant(credentials.credentials if credentials else None)


Asking = Annotated[Tenant, Depends(tenant_of)]
LastEventId = Annotated[str | None, Header(alias="Last-Event-ID", description="The last event's `id:`.")]
StartingAfter = Annotated[str | None, Query(description="Go on behind this one.")]
IdempotencyHeader = Annotated[
    str | None,
    Header(alias="Idempotency-Key", description="The same key and body attach to the request that is there."),
]

Durable = Annotated[
    bool,
    Header(
        alias="x-tokenrelay-durable",
        description="Ours: go on when the client leaves, so that it can read the answer later.",
    ),
]


def idempotency(given: str | None, in_body: object = None) -> str | None:
    """The idempotency key of header or body. Raises Problem 400 where they differ, or for one that can't be one."""
    if given is not None and not 1 <= len(given) <= _MAX_KEY_CHARS:
        told = f"Idempotency-Key: has {len(given)} characters; 1 to {_MAX_KEY_CHARS} are allowed"
        raise Problem(400, told, "invalid_request", "Idempotency-Key")
    if given is not None and in_body not in (None, given):
        told = "idempotency_key: differs from the header Idempotency-Key; give one of them"
        raise Problem(400, told, "invalid_request", "idempotency_key")
    return given


_MAX_KEY_CHARS = 256
