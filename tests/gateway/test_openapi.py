"""The gateway against its own OpenAPI description: generated requests get described responses, and never crash it."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import Case, GenerationMode
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

if TYPE_CHECKING:
    import httpx

    from tests.gateway.live import LiveGateway

CHECKS: Final = [
    schemathesis.checks.not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
"""Without `positive_data_acceptance`, since JSON schema can't express that exactly one of prompt and messages is
required or that the model must be served; and without `negative_data_rejection`, since unknown headers and parameters
are ignored. Invalid bodies have their own tests."""


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("mode", GenerationMode)
def test_what_the_description_allows_and_what_it_does_not(gateway: LiveGateway, mode: GenerationMode) -> None:
    schema = schemathesis.openapi.from_url(f"{gateway.url}/openapi.json")
    operations: list[Any] = [found.ok() for found in schema.get_all_operations() if isinstance(found, Ok)]
    assert "POST /v1/chat/completions" in {operation.label for operation in operations}
    with requests.Session() as session:
        for operation in operations:
            _check(operation, mode, session)


def _check(operation: Any, mode: GenerationMode, session: requests.Session) -> None:
    @settings(max_examples=60, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy(mode))
    def answers_as_described(case: Case[Any]) -> None:
        if isinstance(case.body, dict) and case.body.get("model") == "weather":
            return  # it would wait for an answer, and nobody is there to give one
        case.call_and_validate(session=session, checks=CHECKS, timeout=60)

    with suppress(Unsatisfiable):  # nothing can be wrong with what takes no parameters
        answers_as_described()


BODIES: Final = ("/requests", "/v1/chat/completions", "/v1/completions", "/v1/responses")


@pytest.mark.parametrize("path", BODIES)
def test_every_field_of_a_body_is_described(http: httpx.Client, path: str) -> None:
    description: dict[str, Any] = http.get("/openapi.json").json()
    body = description["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    if "$ref" in body:
        body = description["components"]["schemas"][body["$ref"].rpartition("/")[2]]
    assert {"model", "temperature", "max_new_tokens"} <= body["properties"].keys()
    assert [name for name, field in body["properties"].items() if not field.get("description")] == []
