"""JSON responses, and errors in OpenAI's shape."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from starlette.responses import Response

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tokenrelay.gateway.http.problems import Problem


def json_response(value: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A response with `value` as JSON."""
    return Response(as_json(value), status, dict(headers or {}), "application/json")


def problem_response(problem: Problem) -> Response:
    """The error in OpenAI's shape."""
    body: dict[str, Any] = problem.body()
    return json_response(body, problem.status, problem.headers)


def as_json(value: object) -> bytes:
    """ASCII JSON: lone surrogates, which UTF-8 can't encode, are escaped."""
    return json.dumps(value, separators=(",", ":")).encode()
