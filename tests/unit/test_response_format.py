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


def test_a_schema_given_as_an_object_is_its_text_in_the_order_of_its_keys() -> None:
    value = {"type": "object", "properties": {"ü": {"type": "integer"}, "a": True}}
    text = '{"type": "object", "properties": {"ü": {"type": "integer"}, "a": true}}'
    given = {"type": "json_schema", "value": value}
    assert asked(given) == {"type": "json_schema", "value": text, "strict": True}
    hashes = [
        body_sha256(validate({"prompt": "hi", "response_format": each}, LIMITS), LIMITS)
        for each in (given, {**given, "value": text})
    ]
    assert hashes[0] == hashes[1]
    assert given["value"] is value


def test_a_schema_may_be_true_or_false() -> None:
    """As JSON Schema has them: anything, and nothing, which its compiler refuses."""
    for value, text in ((True, "true"), (False, "false")):
        expected = {"type": "json_schema", "value": text, "strict": True}
        assert (
            asked({"type": "json_schema", "value": value}) == asked({"type": "json_schema", "value": text}) == expected
        )


def test_a_stored_schema_is_left_to_its_compiler() -> None:
    """Which parses it in a process of its own: in the worker's, all other threads would wait for up to 10 ms."""
    plain = resolve(validate({"prompt": "hi", "seed": 1, "max_new_tokens": 3, "temperature": 0.0}, LIMITS), (), {})
    body = dump({**plain, "response_format": {"type": "json_schema", "value": "{", "strict": True}})  # type: ignore[typeddict-item]
    assert load(body, wire=2).get("response_format") == {"type": "json_schema", "value": "{", "strict": True}
    with pytest.raises(RequestError, match="isn't JSON"):
        asked({"type": "json_schema", "value": "{"})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"type": "regex", "values": "a"},
            "values: unknown field; did you mean value? known ones are strict, type, value",
        ),
        ({"type": "regex", "pattern": "a"}, "pattern: unknown field; did you mean value? known ones are"),
        ({"type": "regex", "flags": "i"}, "flags: unknown field; known ones are strict, type, value"),
        (
            {"type": "json_schema", "json_schema": {"name": "n", "schema": {}}},
            "json_schema: unknown field; did you mean value? it's the schema itself, without OpenAI's name around it; ",
        ),
    ],
)
def test_an_unknown_key_is_refused_with_those_that_a_format_has(given: Any, message: str) -> None:
    with pytest.raises(RequestError) as refused:
        asked(given)
    assert refused.value.message.startswith(f"response_format.{message}")


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
        ("regex", "response_format: must be an object with type and value"),
        (int, "response_format: .* pydantic model's class"),
        (list[Weather], "response_format: .* pydantic model's class"),
        (Weather(city="Oslo", degrees=1), "response_format: .* pydantic model's class"),
        ({"type": "regex", "value": 1}, "response_format.value: must be text"),
        ({"type": "regex", "value": {"a": 1}}, "response_format.value: must be text"),
        ({"type": "choice", "value": ["a", 1]}, "response_format.value: must be text; for type choice a list of texts"),
        ({"type": "json_schema", "value": {"enum": [{1}]}}, "isn't JSON"),
        ({"type": "json_schema", "value": nested(65)}, "more than 64 levels"),
        ({"type": "json_schema", "value": nested(900)}, "more than 64 levels"),
        ({"type": "xml"}, "response_format.type: "),
        ({"type": "regex", "value": "a", "flags": "i"}, "flags: unknown field; known ones are strict, type, value"),
        ({"type": "regex", "value": "a", "strict": 1}, "response_format.strict: "),
        ({"type": "json_object", "value": "{}"}, "takes none"),
        ({"type": "json_schema"}, "the schema as an object or as JSON text"),
        ({"type": "json_schema", "value": ["a"]}, "the schema as an object or as JSON text"),
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
        ({"type": "choice", "value": ["x"] * 1025}, "too many choices: 1025; at most 1024"),
        ({"type": "choice", "value": ["a", ""]}, "an empty choice"),
        ({"type": "choice", "value": ["x" * 262_144]}, "262148 bytes"),
    ],
)
def test_what_is_beyond_them_is_refused_by_name(response_format: Any, why: str) -> None:
    with pytest.raises(RequestError, match=why) as refused:
        asked(response_format)
    assert (refused.value.field or "").startswith("response_format")
    assert "str" not in (refused.value.field or "").split(".")
    assert len(refused.value.message) < 300


def test_an_answer_under_a_grammar_ends_where_it_is_complete() -> None:
    with pytest.raises(RequestError, match="ignore_eos: not with response_format") as refused:
        asked({"type": "json_object"}, ignore_eos=True)
    assert refused.value.field == "ignore_eos"
