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
from tokenrelay.shared.options import Limits, validate

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
    ({"content": "a", "tool_calls": [], "reasoning": None, "reasoning_content": "", "name": ""}, "a"),
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
                "reasoning": {"odd": "hm"},
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
    ({"role": "function", "name": "f", "content": "x"}, "role", "give tool_call_id"),
    ({"role": "narrator", "content": "x"}, "role", "must be one of"),
    ({"content": "x"}, "role", "must be one of"),
    ({"role": ["user"], "content": "x"}, "role", "must be one of"),
    ({"role": "assistant", "content": "x", "tool_calls": {"id": "1"}}, "tool_calls", "must be a list of calls"),
    ({"role": "assistant", "content": "x", "tool_calls": ["f"]}, "tool_calls.0", "must be an object with id and"),
    ({"role": "assistant", "content": "x", "tool_calls": [{"id": "1"}]}, "tool_calls.0.function", "must be an object"),
    ({"role": "assistant", "tool_calls": [{"function": {"name": "f"}}]}, "tool_calls.0.id", "must be text"),
    ({"role": "assistant", "tool_calls": [{"id": "1", "function": {}}]}, "tool_calls.0.function.name", "must be text"),
    ({"role": "assistant", "tool_calls": [{"id": "1", "type": "custom"}]}, "tool_calls.0.type", "'custom' aren't"),
    ({"role": "user", "content": "x", "tool_calls": [{"id": "1"}]}, "tool_calls", "with role assistant"),
    ({"role": "assistant", "content": None, "function_call": {"name": "f"}}, "function_call", "tool_calls replaced"),
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
        ([{"type": "function_call_output", "output": "x"}], "input.0.call_id", "must be text"),
        ([{"type": "function_call_output", "call_id": "1"}], "input.0.output", "must be text"),
        (
            [{"type": "function_call_output", "call_id": "1", "output": [{"type": "input_image"}]}],
            "input.0.output.0",
            "images",
        ),
        ([{"type": "function_call", "call_id": "1", "arguments": "{}"}], "input.0.name", "must be text"),
        ([{"type": "custom_tool_call", "call_id": "1"}], "input.0", "tool calls aren't supported"),
        ([{"type": "item_reference"}], "input.0.id", "must be text"),
        ([{"type": "compaction"}], "input.0", "items of type 'compaction' aren't supported"),
    ],
)
def test_an_input_that_cannot_be_taken_is_named(value: Any, param: str, why: str) -> None:
    problem = refused(ResponseBody, input=value)
    assert problem.param == param
    assert why in problem.message


CALL: Final = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
OURS: Final = {"id": "call_1", "name": "f", "arguments": '{"a": 1}'}


def test_a_whole_conversation_with_tools_is_read() -> None:
    messages = [
        {"role": "developer", "content": "Be brief.", "name": "boss"},
        *ASKED,
        {"role": "assistant", "content": None, "reasoning_content": "Hm.", "tool_calls": [CALL], "refusal": None},
        {"role": "tool", "tool_call_id": "call_1", "content": [{"type": "text", "text": "sunny"}]},
        {"role": "assistant", "content": "", "tool_calls": [{**CALL, "id": "2", "function": {"name": "g"}}]},
        {"role": "tool", "tool_call_id": "2", "content": "", "name": "g"},
    ]
    expected = [
        messages[0],
        *ASKED,
        {"role": "assistant", "content": None, "reasoning": "Hm.", "tool_calls": [OURS]},
        {"role": "tool", "content": "sunny", "tool_call_id": "call_1"},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "2", "name": "g", "arguments": "{}"}]},
        {"role": "tool", "content": "", "tool_call_id": "2", "name": "g"},
    ]
    body = read(ChatBody, messages=messages)
    assert body.options()["messages"] == expected
    assert body.ignored == []
    assert read_submission({"messages": messages})[0]["messages"] == expected
    validate({"model": "m", "messages": expected}, Limits(10_000, 100))


def test_call_items_belong_to_the_assistants_message_before_them() -> None:
    items = [
        *ASKED,
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "I'll look."}]},
        {"type": "function_call", "id": "fc_1", "call_id": "call_1", "name": "f", "arguments": '{"a": 1}'},
        {"type": "function_call", "call_id": "call_2", "name": "g", "arguments": ""},
        {"type": "function_call_output", "call_id": "call_1", "output": "sunny"},
        {"type": "function_call_output", "call_id": "call_2", "output": [{"type": "input_text", "text": "warm"}]},
        {"type": "function_call", "call_id": "call_3", "name": "f", "arguments": {"b": 2}},
    ]
    assert read(ResponseBody, input=items).options()["messages"] == [
        *ASKED,
        {
            "role": "assistant",
            "content": "I'll look.",
            "tool_calls": [OURS, {"id": "call_2", "name": "g", "arguments": "{}"}],
        },
        {"role": "tool", "content": "sunny", "tool_call_id": "call_1"},
        {"role": "tool", "content": "warm", "tool_call_id": "call_2"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "call_3", "name": "f", "arguments": '{"b": 2}'}],
        },
    ]
