"""The option response_format: what can be said without compiling it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import BaseModel

from tokenrelay.shared.errors import RequestError
from tokenrelay.shared.options import Limits, body_sha256, dump, load, resolve, validate, wire_of

LIMITS = Limits(1000, 1000)


class Weather(BaseModel):
    """A model with another in it."""

    city: str
    degrees: int


class Open(BaseModel, extra="allow"):
    """A model that keeps other keys."""

    city: str


def asked(response_format: Any, **options: Any) -> Any:
    return validate({"prompt": "hi", "response_format": response_format, **options}, LIMITS)["response_format"]


def schema(value: Any) -> dict[str, Any]:
    return {"type": "json_schema", "value": json.dumps(value)}


def nested(levels: int) -> Any:
    value: Any = {}
    for _ in range(levels - 1):
        value = {"not": value}
    return value


def test_a_pydantic_model_is_its_schema() -> None:
    option = asked(Weather)
    assert (option["type"], option["strict"]) == ("json_schema", True)
    schema = json.loads(option["value"])
    assert list(schema["properties"]) == ["city", "degrees"]
    assert schema["additionalProperties"] is False
    assert json.loads(asked(Open)["value"])["additionalProperties"] is True


def test_it_makes_a_request_one_of_version_2_that_is_read_as_it_was_written() -> None:
    plain = validate({"prompt": "hi", "seed": 1, "max_new_tokens": 3}, LIMITS)
    request = validate({**plain, "response_format": {"type": "regex", "value": "a+"}}, LIMITS)
    stored = resolve(request, (), {})
    assert (wire_of(resolve(plain, (), {})), wire_of(stored)) == (1, 2)
    assert load(dump(stored), 2)["response_format"] == {"type": "regex", "value": "a+", "strict": True}
    assert body_sha256(plain, LIMITS) != body_sha256(request, LIMITS)
    assert body_sha256(plain, LIMITS) == body_sha256(validate({**plain, "response_format": None}, LIMITS), LIMITS)


@pytest.mark.parametrize(
    "response_format",
    [
        schema(True),
        schema(nested(64)),
        schema({"$ref": "#/$defs/a", "$defs": {"a": {"type": "string"}}}),
        schema({"properties": {"$ref": {"type": "string"}}}),
        schema({"const": {"$ref": "https://example.com"}}),
        schema({"$id": "https://example.com/a", "$ref": "https://example.com/a#/$defs/b"}),
        {"type": "regex", "value": "x" * 262_144},
        {"type": "choice", "value": ["x"] * 1024},
    ],
)
def test_it_may_be_as_large_as_the_bounds_say(response_format: Any) -> None:
    asked(response_format)


@pytest.mark.parametrize(
    ("response_format", "why"),
    [
        ("regex", "response_format: "),
        ({"type": "xml"}, "response_format.type: "),
        ({"type": "regex", "value": "a", "flags": "i"}, "flags: unknown field; known ones are strict, type, value"),
        ({"type": "regex", "value": "a", "strict": 1}, "response_format.strict: "),
        ({"type": "json_object", "value": "{}"}, "takes none"),
        ({"type": "json_schema"}, "the schema as JSON text"),
        ({"type": "json_schema", "value": ["a"]}, "the schema as JSON text"),
        ({"type": "json_schema", "value": "{'a': 1}"}, "isn't JSON"),
        (schema([]), "isn't a JSON object"),
        (schema(nested(65)), "more than 64 levels"),
        ({"type": "json_schema", "value": '{"not":' * 100_000}, "700000 bytes; at most 262144"),
        ({"type": "json_schema", "value": '{"not":' * 30_000 + "{}" + "}" * 30_000}, "more than 64 levels"),
        (schema({"$ref": "https://example.com/schema.json"}), "another document, 'https://example.com/schema.json'"),
        (schema({"items": {"$ref": "other.json"}}), "another document"),
        ({"type": "regex", "value": " "}, "the pattern"),
        ({"type": "regex", "value": "x" * 262_145}, "262145 bytes; at most 262144"),
        ({"type": "regex", "value": "\ud800"}, "lone surrogate"),
        ({"type": "lark", "value": "ü" * 131_073}, "262146 bytes"),
        ({"type": "choice", "value": "a"}, "1 to 1024 texts"),
        ({"type": "choice", "value": []}, "1 to 1024 texts"),
        ({"type": "choice", "value": ["x"] * 1025}, "1 to 1024 texts"),
        ({"type": "choice", "value": ["a", ""]}, "an empty choice"),
        ({"type": "choice", "value": ["x" * 262_144]}, "262148 bytes"),
    ],
)
def test_what_is_beyond_them_is_refused_by_name(response_format: Any, why: str) -> None:
    with pytest.raises(RequestError, match=why) as refused:
        asked(response_format)
    assert (refused.value.field or "").startswith("response_format")
    assert len(refused.value.message) < 300


def test_an_answer_under_a_grammar_ends_where_it_is_complete() -> None:
    with pytest.raises(RequestError, match="ignore_eos: not with response_format") as refused:
        asked({"type": "json_object"}, ignore_eos=True)
    assert refused.value.field == "ignore_eos"
