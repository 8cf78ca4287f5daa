"""What the OpenAPI description says of answers."""

from __future__ import annotations

from typing import Any, Final

from pydantic import BaseModel


class ErrorDetail(BaseModel):
    """What went wrong; `code` is for programs, `param` names the field."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """Every error's JSON."""

    error: ErrorDetail


class Accepted(BaseModel):
    """A request that was queued."""

    request_id: str
    model: str
    events: str


class Status(BaseModel):
    """A request at one moment; times are microseconds since 1970, by Redis's clock."""

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
    """A served model. `training`: whether /models/{model}/training has its trace.

    `max_model_len`, under four names: the tokens that prompt and answer may have together.
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


class ModelList(BaseModel):
    """All served models."""

    object: str
    data: list[Model]


_TOLD: Final = {
    400: "What was sent can't be taken: `param` names it.",
    401: "No API key, or an unknown one.",
    404: "There is none, or it's another key's.",
    410: "It was there, and is gone.",
    413: "The body is too large.",
    422: "The idempotency key belongs to another body.",
    429: "Too much at a time: `Retry-After` says when to come back.",
    503: "Redis can't be used right now.",
}
ERRORS: Final[dict[int | str, dict[str, Any]]] = {
    status: {"description": told, "model": ErrorBody} for status, told in _TOLD.items()
}
EVENTS: Final[dict[int | str, dict[str, Any]]] = {
    200: {"description": "Server-sent events.", "content": {"text/event-stream": {"schema": {"type": "string"}}}},
    204: {"description": "The last event was read already: nothing more will come."},
}


def inlined(schema: dict[str, Any]) -> dict[str, Any]:
    """The JSON schema with its definitions put where they're referred to, so that it can stand anywhere."""
    definitions = schema.get("$defs", {})

    def resolved(node: Any) -> Any:
        if isinstance(node, dict):
            if "$ref" in node:
                return resolved(definitions[node["$ref"].rpartition("/")[2]])
            return {name: resolved(value) for name, value in node.items() if name != "$defs"}
        return [resolved(value) for value in node] if isinstance(node, list) else node

    plain: dict[str, Any] = resolved(schema)
    return plain
