"""JSON responses, and HTTP errors: the status and JSON body of each, in OpenAI's shape."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NoReturn

from starlette.responses import Response

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
    from collections.abc import Iterable, Mapping, Sequence

    from starlette.exceptions import HTTPException
    from starlette.requests import Request

_SHOWN_CHARS: Final = 80
_ENDPOINTS: Final = ("/chat/completions", "/completions", "/responses", "/models")
OPENAI_CODES: Final = {"prompt_too_long": "context_length_exceeded"}
"""Our error codes → OpenAI's, where they differ."""
_UNREADABLE: Final = (
    "the body can't be parsed: send JSON in UTF-8, not deeply nested, and without numbers of thousands of digits"
)
NO_RETRY: Final = {"x-should-retry": "false"}
"""Keeps OpenAI's clients from retrying a request that has ended."""


class RangeGone(StreamError):
    """The requested position isn't in the stream, which holds `first` to `last`."""

    def __init__(self, message: str, *, request_id: str, first: str, last: str) -> None:
        super().__init__(message, request_id=request_id)
        self.first = first
        self.last = last


@dataclass(eq=False)  # not frozen: Python sets __traceback__
class Problem(Exception):
    """An HTTP error response. `kind` is OpenAI's `type`."""

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


def json_response(value: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A response with `value` as JSON. In ASCII: lone surrogates, which UTF-8 can't encode, are escaped."""
    content = json.dumps(value, separators=(",", ":")).encode()
    return Response(content, status, dict(headers or {}), "application/json")


def problem_response(problem: Problem) -> Response:
    """The error in OpenAI's shape."""
    return json_response(problem.body(), problem.status, problem.headers)


def problem_of(error: TokenRelayError) -> Problem:
    """The HTTP error for one of our exceptions."""
    match error:
        case RequestNotFound():
            return Problem(404, error.message, "not_found", "request_id")
        case IdempotencyConflict():
            return Problem(422, error.message, error.code, "Idempotency-Key")
        case RequestError():
            extra = {} if error.limit is None else {"limit": error.limit}
            code = OPENAI_CODES.get(error.code, error.code)
            return Problem(400, error.message, code, error.field, extra=extra)
        case QueueFull():
            return too_many_requests(error.message, "queue_full", error.retry_after_s)
        case RedisUnusable():
            return Problem(503, error.message, "redis_unusable", kind="server_error", headers={"Retry-After": "2"})
        case RangeGone():
            left = {"first": error.first, "last": error.last}
            return Problem(410, error.message, "range_gone", extra=left, headers=NO_RETRY)
        case StreamError() | ProtocolError():
            return Problem(410, error.message, "stream_gone", headers=NO_RETRY)
    return Problem(500, error.message, "server_error", kind="server_error", headers=NO_RETRY)


def too_many_requests(message: str, code: str, retry_after_s: float) -> Problem:
    """A 429 with Retry-After."""
    headers = {"Retry-After": str(max(1, math.ceil(retry_after_s)))}
    return Problem(429, message, code, kind="rate_limit_error", headers=headers)


def model_not_found(name: str, served: Iterable[str]) -> Problem:
    live = ", ".join(served) or "none"
    message = f"no live worker serves the model {ascii(name)[:140]}; served models: {live}"
    return Problem(404, message, "model_not_found", "model")


def unauthorized(message: str) -> Problem:
    headers = {"WWW-Authenticate": "Bearer"}
    return Problem(401, message, "invalid_api_key", kind="authentication_error", headers=headers)


def framework_problem(error: HTTPException, request: Request) -> Problem:
    """The HTTP error for a refusal by the framework: unknown route, method not allowed, unreadable body."""
    status, headers = error.status_code, dict(error.headers or {})
    path, encoding = request.url.path, request.headers.get("content-encoding")
    shown = ascii(path[:_SHOWN_CHARS]).strip("'")
    if status == 404:
        endpoint = next((known for known in _ENDPOINTS if path.rstrip("/").endswith(known)), None)
        hint = f"; OpenAI's clients reach /v1{endpoint} with a base URL that ends in /v1" if endpoint else ""
        return Problem(404, f"nothing is at {shown}{hint}", "not_found", headers=headers)
    if status == 405:
        allowed = headers.get("Allow", headers.get("allow", "another"))
        message = f"{request.method} isn't allowed at {shown}; use {allowed}"
        return Problem(405, message, "method_not_allowed", headers=headers)
    if status == 400 and encoding not in (None, "", "identity"):
        message = f"Content-Encoding: is {ascii(encoding)[:_SHOWN_CHARS]}; send the body unencoded"
        return Problem(415, message, "invalid_request", "Content-Encoding")
    if status == 400:
        return Problem(400, _UNREADABLE, "invalid_json", headers=headers)
    return Problem(status, error.detail, "invalid_request", headers=headers)


def validation_problem(errors: Sequence[Any], body: object = None, content_type: str | None = None) -> Problem:
    """The HTTP error for the first of pydantic's errors, with the field's path as the caller sent it."""
    first = errors[0]
    context = first.get("ctx", {})
    if first["type"] == "json_invalid":
        return Problem(400, f"the body isn't JSON: {context.get('error', first['msg'])}", "invalid_json")
    if isinstance(body, bytes):  # not sent as application/json
        what = f"is {ascii(content_type)[:80]}" if content_type else "is missing"
        return Problem(400, f"Content-Type: {what}; send application/json", "invalid_request", "Content-Type")
    field = ".".join(_path(first["loc"], body)) or context.get("field") or None
    reason = _REASONS.get(first["type"]) or str(first["msg"]).removeprefix("Value error, ")
    return Problem(400, f"{field or 'the body'}: {reason}", "invalid_request", field)


_REASONS: Final = {
    "dict_type": "must be a JSON object",
    "missing": "is missing",
    "model_attributes_type": "must be a JSON object",
    "model_type": "must be a JSON object",
}


def _path(location: Sequence[str | int], body: object) -> list[str]:
    """pydantic's path without its own parts: pydantic also names the union members that it tried."""
    kind, *rest = location
    if kind != "body":
        return [str(part) for part in rest]
    path: list[str] = []
    value = body
    for part in rest:
        if isinstance(value, dict) and part not in value and path:
            continue
        path.append(str(part))
        value = _item(value, part)
    return path


def _item(value: object, part: str | int) -> object:
    if isinstance(value, dict):
        return value.get(part)
    return value[part] if isinstance(value, list) and isinstance(part, int) and part < len(value) else None


def refuse(path: str, why: str, code: str = "invalid_request") -> NoReturn:
    """Refuse a body, naming the place that is at fault."""
    raise Problem(400, f"{path}: {why}", code, path)
