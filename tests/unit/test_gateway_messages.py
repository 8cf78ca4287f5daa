"""Messages: any server's answer is accepted as history, and unsupported parts are refused with their path."""

from __future__ import annotations

from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.test_gateway_bodies import ASKED, read, refused
from tokenrelay.gateway.openai.bodies.ignored import header
from tokenrelay.gateway.openai.bodies.request_bodies import ChatBody, ResponseBody
from tokenrelay.gateway.openai.bodies.submissions import read_submission

TEXTS: Final[list[tuple[Any, str]]] = [
    (["Say", "hello"], "Say\nhello"),
    ([{"type": "text", "text": "Say"}, {"type": "text", "text": "hello"}], "Say\nhello"),
    ([{"type": "input_text", "text": "Say"}, "hello"], "Say\nhello"),
    ([{"text": "Say"}], "Say"),
    ([{"type": "text", "text": "Say", "cache_control": {"type": "ephemeral"}}], "Say"),
    ([], ""),
]


@pytest.mark.parametrize(("content", "text"), TEXTS)
def test_text_parts_are_joined_by_a_line_end(content: Any, text: str) -> None:
    message = {"role": "user", "content": content}
    assert read(ChatBody, messages=[message]).options()["messages"] == [{"role": "user", "content": text}]
    assert read(ResponseBody, input=[message]).options()["messages"] == [{"role": "user", "content": text}]
    assert read_submission({"messages": [message]})[0]["messages"] == [{"role": "user", "content": text}]


ANSWERS: Final[list[tuple[dict[str, Any], str]]] = [
    (
        {"content": "a", "refusal": None, "annotations": [], "audio": None, "function_call": None, "tool_calls": None},
        "a",
    ),
    ({"content": "a", "tool_calls": [], "reasoning": None, "reasoning_content": "hm", "name": "bot"}, "a"),
    ({"content": "a", "provider_specific_fields": {"x": 1}, "thinking_blocks": [{}], "prefix": False}, "a"),
    ({"content": None}, ""),
    ({}, ""),
    ({"content": None, "refusal": "No."}, "No."),
    ({"content": "", "refusal": "No."}, "No."),
    ({"content": [{"type": "refusal", "refusal": "No."}]}, "No."),
    ({"content": [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "a"}]}, "a"),
]


@pytest.mark.parametrize(("answer", "text"), ANSWERS)
def test_any_servers_answer_is_taken_back(answer: dict[str, Any], text: str) -> None:
    messages = [*ASKED, {"role": "assistant", **answer}, *ASKED]
    for body in (read(ChatBody, messages=messages), read(ResponseBody, input=messages)):
        assert body.options()["messages"] == [*ASKED, {"role": "assistant", "content": text}, *ASKED]


def test_what_was_ignored_is_named_by_its_path() -> None:
    body = read(
        ChatBody,
        foo=1,
        nothing=None,
        reasoning_effort="low",
        user="me",
        stream_options={"bar": 2},
        messages=[
            *ASKED,
            {
                "role": "assistant",
                "content": [{"type": "text", "text": "a", "odd": 1}],
                "reasoning": "hm",
                "refusal": None,
            },
        ],
    )
    assert body.unknown == ["foo"]
    assert body.ignored == [
        "foo",
        "reasoning_effort",
        "stream_options.bar",
        "messages.1.content.0.odd",
        "messages.1.reasoning",
    ]
    items = [*ASKED, {"type": "reasoning", "id": "rs_1", "summary": []}, *ASKED]
    assert read(ResponseBody, input=items).ignored == ["input.1"]
    assert read_submission({"messages": [{"role": "user", "content": "x", "odd": 1}]})[1] == ("messages.0.odd",)


@settings(deadline=None)
@given(st.lists(st.text(), max_size=60))
def test_whatever_the_names_are_the_header_is_one_short_line(names: list[str]) -> None:
    """Names come from the caller: they can't inject header lines or make the header long."""
    for value in header(names).values():
        assert value.isascii()
        assert value == value.strip()
        assert value.isprintable()
        assert len(value) < 2000


REFUSED_CONTENTS: Final[list[tuple[Any, str, str]]] = [
    ({"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url"}]}, "content.1", "images aren't"),
    ({"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}, "content.0", "images aren't supported"),
    ({"role": "user", "content": [{"type": "input_audio"}]}, "content.0", "audio isn't supported"),
    ({"role": "user", "content": [{"type": "file", "file": {}}]}, "content.0", "files aren't supported"),
    ({"role": "user", "content": [{"type": "input_file"}]}, "content.0", "files aren't supported"),
    ({"role": "user", "content": [{"type": "video_url"}]}, "content.0", "videos aren't supported"),
    ({"role": "user", "content": [{"type": "hologram"}]}, "content.0", "'hologram' aren't supported"),
    ({"role": "user", "content": [{"type": "text", "text": None}]}, "content.0.text", "must be text"),
    ({"role": "user", "content": [{"type": "text"}]}, "content.0.text", "must be text"),
    ({"role": "user", "content": [{"type": 5}]}, "content.0.type", "must be text"),
    ({"role": "user", "content": [{}]}, "content.0.type", "is missing"),
    ({"role": "user", "content": [5]}, "content.0", "must be a text part"),
    ({"role": "user", "content": 5}, "content", "must be text or a list of text parts"),
    ({"role": "user", "content": {"type": "text", "text": "x"}}, "content", "must be text or a list"),
    ({"role": "user", "content": None}, "content", "is null"),
    ({"role": "user"}, "content", "is missing"),
    ({"role": "user", "content": "\ud800"}, "content", "lone surrogate"),
    ({"role": "user", "content": ["x", "\ud800"]}, "content.1", "lone surrogate"),
    ({"role": "tool", "content": "x", "tool_call_id": "1"}, "role", "tool calls aren't supported"),
    ({"role": "narrator", "content": "x"}, "role", "must be one of"),
    ({"content": "x"}, "role", "must be one of"),
    ({"role": ["user"], "content": "x"}, "role", "must be one of"),
    ({"role": "assistant", "content": "x", "tool_calls": [{"id": "1"}]}, "tool_calls", "tool calls aren't"),
    ({"role": "assistant", "content": None, "function_call": {"name": "f"}}, "function_call", "tool calls aren't"),
    ({"role": "assistant", "content": None, "audio": {"id": "1"}}, "audio", "audio isn't supported"),
    ({"role": "assistant", "content": "x", "prefix": True}, "prefix", "continuing a message isn't supported"),
    ({"role": "user", "content": "x", "images": ["..."]}, "images", "images aren't supported"),
]


@pytest.mark.parametrize(("message", "param", "why"), REFUSED_CONTENTS)
def test_a_content_that_cannot_be_taken_is_named_by_the_callers_path(message: Any, param: str, why: str) -> None:
    for kind, field in ((ChatBody, "messages"), (ResponseBody, "input")):
        problem = refused(kind, **{field: [*ASKED, message]})
        assert problem.param == f"{field}.1.{param}"
        assert problem.message.startswith(f"{problem.param}: ")
        assert why in problem.message


@pytest.mark.parametrize(
    ("value", "param", "why"),
    [
        (5, "input", "must be text or a list of messages"),
        ([], "input", "is empty"),
        (["hi"], "input.0", "must be an object"),
        ([{"type": "function_call_output", "call_id": "1", "output": "x"}], "input.0", "tool calls aren't supported"),
        ([{"type": "item_reference"}], "input.0.id", "must be text"),
        ([{"type": "compaction"}], "input.0", "items of type 'compaction' aren't supported"),
    ],
)
def test_an_input_that_cannot_be_taken_is_named(value: Any, param: str, why: str) -> None:
    problem = refused(ResponseBody, input=value)
    assert problem.param == param
    assert why in problem.message
