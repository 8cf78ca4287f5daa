"""What goes wrong over HTTP: each error's status and its JSON, in OpenAI's shape, so that its clients understand it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from tokenrelay.shared.errors import (
    IdempotencyConflict,
    ProtocolError,
    QueueFull,
    RedisUnusable,
    RequestError,
    RequestNotFound,
    StreamError,
    TokenRelayError,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

NO_RETRY: Final = {"x-should-retry": "false"}
"""OpenAI's clients send again what failed; a request that ended must not be."""


class RangeGone(StreamError):
    """A reader asked for a part of the stream that isn't there; `first` to `last` is."""

    def __init__(self, message: str, *, request_id: str, first: str, last: str) -> None:
        super().__init__(message, request_id=request_id)
        self.first = first
        self.last = last


@dataclass(eq=False)  # not frozen: Python writes an exception's traceback into it
class Problem(Exception):
    """An answer that is an error. `kind` is OpenAI's `type`."""

    status: int
    message: str
    code: str
    param: str | None = None
    kind: str = "invalid_request_error"
    headers: dict[str, str] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)

    def body(self) -> dict[str, Any]:
        error = {"message": self.message, "type": self.kind, "param": self.param, "code": self.code, **self.extra}
        return {"error": error}


def problem_of(error: TokenRelayError) -> Problem:
    """How an error of ours is answered."""
    match error:
        case RequestNotFound():
            return Problem(404, error.message, "not_found", "request_id")
        case IdempotencyConflict():
            return Problem(422, error.message, error.code, "Idempotency-Key")
        case RequestError():
            extra = {} if error.limit is None else {"limit": error.limit}
            return Problem(400, error.message, error.code, error.field, extra=extra)
        case QueueFull():
            return too_many(error.message, "queue_full", error.retry_after_s)
        case RedisUnusable():
            return Problem(503, error.message, "redis_unusable", kind="server_error", headers={"Retry-After": "2"})
        case RangeGone():
            left = {"first": error.first, "last": error.last}
            return Problem(410, error.message, "range_gone", extra=left, headers=NO_RETRY)
        case StreamError() | ProtocolError():
            return Problem(410, error.message, "stream_gone", headers=NO_RETRY)
    return Problem(500, error.message, "server_error", kind="server_error", headers=NO_RETRY)


def too_many(message: str, code: str, retry_after_s: float) -> Problem:
    """A 429 that says when to come back."""
    headers = {"Retry-After": str(max(1, math.ceil(retry_after_s)))}
    return Problem(429, message, code, kind="rate_limit_error", headers=headers)


def unauthorized(message: str) -> Problem:
    headers = {"WWW-Authenticate": "Bearer"}
    return Problem(401, message, "invalid_api_key", kind="authentication_error", headers=headers)


def invalid(errors: Sequence[Any]) -> Problem:
    """The first of pydantic's errors, with the field's path as OpenAI names it: messages.0.content."""
    first = errors[0]
    path = [str(part) for part in first["loc"] if part not in ("body", "query", "header")]
    context = first.get("ctx", {})
    field = ".".join(path) or context.get("field") or None
    if first["type"] == "json_invalid":
        return Problem(400, f"the body isn't JSON: {context.get('error', first['msg'])}", "invalid_json")
    reason = str(first["msg"]).removeprefix("Value error, ")
    code = context.get("code", "invalid_request")
    if first["type"] == "extra_forbidden":
        reason, code = "unknown field", "unknown_parameter"
    return Problem(400, f"{field or 'the body'}: {reason}", code, field)
