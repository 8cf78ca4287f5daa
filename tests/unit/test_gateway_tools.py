"""Tools in bodies of OpenAI's endpoints."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.unit.test_gateway_bodies import read, refused
from tokenrelay.gateway.http.problems import Problem
from tokenrelay.gateway.openai.bodies.request_bodies import ChatBody, CompletionBody, ResponseBody

if TYPE_CHECKING:
    from tokenrelay.gateway.openai.bodies.request_bodies import Common


@pytest.mark.parametrize("kind", [CompletionBody, ResponseBody])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tools", [{"type": "function"}]),
        ("tool_choice", "required"),
        ("tool_choice", {"type": "function", "function": {"name": "f"}}),
    ],
)
def test_only_chats_call_tools(kind: type[Common], name: str, value: Any) -> None:
    problem = refused(kind, **{name: value})
    assert (problem.status, problem.param, problem.code) == (400, name, "unsupported_parameter")
    assert problem.message == f"{name}: isn't supported here; leave it out"


@pytest.mark.parametrize(
    ("fields", "param", "why"),
    [
        ({"tools": {"name": "f"}}, "tools", "must be a list of tools"),
        ({"tools": ["f"]}, "tools.0", "must be an object"),
        ({"tools": [{"type": "web_search"}]}, "tools.0.type", "'web_search' aren't supported"),
        ({"tool_choice": {"type": "allowed_tools"}}, "tool_choice.type", "'allowed_tools' aren't supported"),
        ({"parallel_tool_calls": "yes"}, "parallel_tool_calls", "boolean"),
    ],
)
def test_tools_that_cannot_be_read_are_named(fields: dict[str, Any], param: str, why: str) -> None:
    problem = refused(ChatBody, **fields)
    assert (problem.status, problem.param) == (400, param)
    assert why in problem.message


def test_a_chats_tools() -> None:
    tool = {"type": "function", "function": {"name": "f"}}
    asked = {"tools": [tool], "tool_choice": "required", "parallel_tool_calls": False}
    assert {name: read(ChatBody, **asked).options()[name] for name in asked} == asked
    neutral: list[dict[str, Any]] = [{}, {"tools": []}, {"tools": None, "tool_choice": "none"}]
    for nothing in (*neutral, {"parallel_tool_calls": True}):
        body = read(ChatBody, **nothing)
        assert not body.options().keys() & asked.keys()
        assert body.ignored == []
    with pytest.raises(Problem, match="needs tools to choose from"):
        read(ChatBody, tool_choice="required").options()
