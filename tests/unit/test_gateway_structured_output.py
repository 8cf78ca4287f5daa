"""What an answer must match, as each API's clients ask for it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tokenrelay.gateway.http.problems import Problem
from tokenrelay.gateway.openai.bodies.request_bodies import ChatBody, CompletionBody, ResponseBody
from tokenrelay.gateway.openai.bodies.submissions import read_submission
from tokenrelay.shared.errors import RequestError
from tokenrelay.shared.options import Limits, validate

if TYPE_CHECKING:
    from tokenrelay.gateway.openai.bodies.request_bodies import Common

LEAST: dict[type[Common], dict[str, Any]] = {
    ChatBody: {"messages": [{"role": "user", "content": "hi"}]},
    CompletionBody: {"prompt": "hi"},
    ResponseBody: {"input": "hi"},
}
SCHEMA = {"type": "object", "properties": {"b": {"type": "integer"}, "a": {"type": "string"}}}
TEXT = json.dumps(SCHEMA)


def asked(kind: type[Common], **fields: Any) -> Any:
    """The option that submit gets, validated as there."""
    body = kind.model_validate({"model": "weather", **LEAST[kind], **fields})
    assert body.ignored == []
    (options,) = body.submissions()
    return validate(options, Limits(1000, 1000)).get("response_format")


@pytest.mark.parametrize("kind", LEAST)
@pytest.mark.parametrize(
    ("fields", "option"),
    [
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": {"type": "json_object"}}, {"type": "json_object", "strict": True}),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "n", "schema": SCHEMA, "strict": True},
                }
            },
            {"type": "json_schema", "value": TEXT, "strict": True},
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}},
            {"type": "json_schema", "value": TEXT, "strict": False},
        ),
        (
            {"response_format": {"type": "regex", "value": "a+", "strict": "true"}},
            {"type": "regex", "value": "a+", "strict": True},
        ),
        ({"structured_outputs": {}}, None),
        ({"structured_outputs": {"json": None, "json_object": False, "whitespace_pattern": ""}}, None),
        ({"structured_outputs": {"json": {}}}, {"type": "json_schema", "value": "{}", "strict": True}),
        ({"structured_outputs": {"json": SCHEMA}}, {"type": "json_schema", "value": TEXT, "strict": True}),
        ({"structured_outputs": {"json": TEXT, "regex": None}}, {"type": "json_schema", "value": TEXT, "strict": True}),
        ({"structured_outputs": {"json_object": True}}, {"type": "json_object", "strict": True}),
        ({"structured_outputs": {"regex": "a+"}}, {"type": "regex", "value": "a+", "strict": True}),
        ({"structured_outputs": {"choice": ["a", "b"]}}, {"type": "choice", "value": ["a", "b"], "strict": True}),
        ({"structured_outputs": {"grammar": 'start: "a"'}}, {"type": "lark", "value": 'start: "a"', "strict": True}),
    ],
)
def test_each_shape_is_the_option(kind: type[Common], fields: dict[str, Any], option: Any) -> None:
    """A schema keeps its keys' order, in which the answer's keys come."""
    assert asked(kind, **fields) == option


def test_responses_have_it_in_text() -> None:
    form = {"type": "json_schema", "name": "n", "schema": SCHEMA, "strict": True}
    expected = {"type": "json_schema", "value": TEXT, "strict": True}
    assert asked(ResponseBody, text={"format": form, "verbosity": "low"}) == expected
    assert asked(ResponseBody, text={"format": {"type": "json_object"}}) == {"type": "json_object", "strict": True}
    assert asked(ResponseBody, text={"format": {"type": "text"}}) is None


def test_our_own_shape_of_a_schema_may_hold_an_object() -> None:
    given, _ = read_submission({"prompt": "hi", "response_format": {"type": "json_schema", "value": SCHEMA}})
    stored = validate(given, Limits(1000, 1000))["response_format"]
    assert stored == {"type": "json_schema", "value": TEXT, "strict": True}


def test_our_own_shape_is_that_of_requests() -> None:
    given, _ = read_submission({"prompt": "hi", "response_format": {"type": "choice", "value": ["a"]}})
    assert given["response_format"] == {"type": "choice", "value": ["a"]}


@pytest.mark.parametrize(
    ("kind", "fields", "param"),
    [
        (ChatBody, {"response_format": {"type": "structural_tag"}}, "response_format.type"),
        (ChatBody, {"response_format": "json"}, "response_format"),
        (ChatBody, {"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema"),
        (ChatBody, {"response_format": {"type": "json_object", "schema": SCHEMA}}, "response_format.schema"),
        (ChatBody, {"response_format": {"type": "json_object", "json_schema": SCHEMA}}, "response_format.json_schema"),
        (ChatBody, {"response_format": {"type": "json_object", "value": TEXT}}, "response_format.value"),
        (ResponseBody, {"text": {"format": {"type": "json_schema"}}}, "text.format.schema"),
        (ResponseBody, {"text": {"format": {"type": "grammar"}}}, "text.format.type"),
        (ResponseBody, {"text": {"format": {"type": "json_schema", "schema": {}, "name": 5}}}, "text.format.name"),
        (
            ResponseBody,
            {"text": {"format": {"type": "json_schema", "schema": {}, "name": "n" * 65}}},
            "text.format.name",
        ),
        (ResponseBody, {"text": "json"}, "text"),
        (ChatBody, {"structured_outputs": {"structural_tag": "x"}}, "structured_outputs.structural_tag"),
        (ChatBody, {"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs"),
    ],
)
def test_another_shape_is_refused_by_name(kind: type[Common], fields: dict[str, Any], param: str) -> None:
    with pytest.raises(Problem) as refused:
        asked(kind, **fields)
    assert (refused.value.status, refused.value.param) == (400, param)


def test_two_of_them_are_refused() -> None:
    with pytest.raises(Problem, match="give one of them"):
        asked(ChatBody, response_format={"type": "json_object"}, structured_outputs={"regex": "a"})


@pytest.mark.parametrize(
    ("kind", "fields", "path"),
    [
        (ChatBody, {"response_format": {"type": "regex"}}, "response_format"),
        (ChatBody, {"structured_outputs": {"choice": "a"}}, "structured_outputs"),
        (ChatBody, {"structured_outputs": {"choice": []}}, "structured_outputs"),
        (ChatBody, {"structured_outputs": {"regex": ""}}, "structured_outputs"),
        (ResponseBody, {"text": {"format": {"type": "regex"}}}, "text.format"),
    ],
)
def test_an_error_names_the_callers_field(kind: type[Common], fields: dict[str, Any], path: str) -> None:
    body = kind.model_validate({"model": "weather", **LEAST[kind], **fields})
    with pytest.raises(RequestError) as refused:
        validate(body.options(), Limits(1000, 1000))
    assert body.with_callers_field(refused.value).field == path
