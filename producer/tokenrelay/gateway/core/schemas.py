"""Response schemas for the OpenAPI description."""

from __future__ import annotations

from typing import Any, Final

from pydantic import BaseModel


class ErrorDetail(BaseModel):
    """One error. `code` is machine-readable, `param` names the field."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """The JSON body of every error."""

    error: ErrorDetail


class Accepted(BaseModel):
    """An accepted request. `choices`: the IDs of all requests where several were asked for; the first is its own."""

    request_id: str
    model: str
    events: str
    choices: list[str] | None = None


class Status(BaseModel):
    """A request's current state. Times are microseconds since the epoch, on Redis's clock."""

    request_id: str
    model: str
    state: str
    tokens: int
    attempts: int
    queue: str
    created_us: int | None
    deadline_us: int
    finished_us: int | None
    finish_reason: str | None
    cancelled_by: str | None
    error: dict[str, str | None] | None
    metadata: dict[str, Any]


class Model(BaseModel):
    """A served model. `training`: whether /models/{model}/training returns a training trace.

    `max_model_len` and its three aliases: the context length, in tokens, for prompt and answer together. `wire`: the
    highest version of requests that one of its workers knows; `capabilities`: the larger features of version 2 that
    one of them has.
    """

    id: str
    object: str
    created: int
    owned_by: str
    training: bool
    max_model_len: int | None
    context_length: int | None
    context_window: int | None
    max_context_length: int | None
    wire: int
    capabilities: list[str]


class ModelList(BaseModel):
    """List of served models."""

    object: str
    data: list[Model]


_DESCRIPTIONS: Final = {
    400: "Invalid request. `param` names the field.",
    401: "The API key is missing or unknown.",
    404: "Not found, or owned by another API key.",
    410: "Its data is no longer in Redis.",
    413: "The request body is too large.",
    422: "The idempotency key was used with a different body.",
    429: "Too many requests. Retry after `Retry-After` seconds.",
    503: "Redis is unavailable.",
}
ERRORS: Final[dict[int | str, dict[str, Any]]] = {
    status: {"description": description, "model": ErrorBody} for status, description in _DESCRIPTIONS.items()
}
EVENTS: Final[dict[int | str, dict[str, Any]]] = {
    200: {"description": "Server-sent events.", "content": {"text/event-stream": {"schema": {"type": "string"}}}},
    204: {"description": "The stream has ended and has no more events."},
}


def inlined(schema: dict[str, Any]) -> dict[str, Any]:
    """The JSON schema with each `$ref` replaced by its definition."""
    definitions = schema.get("$defs", {})

    def resolved(node: Any) -> Any:
        if isinstance(node, dict):
            if "$ref" in node:
                return resolved(definitions[node["$ref"].rpartition("/")[2]])
            return {name: resolved(value) for name, value in node.items() if name != "$defs"}
        return [resolved(value) for value in node] if isinstance(node, list) else node

    plain: dict[str, Any] = resolved(schema)
    return plain
