"""Parsers of tool calls and reasoning: real tokenizers' tokens, every cut, every resume point, vLLM's own parsers."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.answers.outputs import OUTPUTS
from tokenrelay.shared.answers.deltas import (
    AssistantMessage,
    CallArguments,
    CallBegin,
    CallEnd,
    Content,
    Delta,
    Reasoning,
    call_id,
    message_of,
)
from tokenrelay.shared.answers.formats.json_scanner import JsonScanner
from tokenrelay.shared.answers.parser import REASONING_PARSERS, TOOL_PARSERS, AnswerParser, Formats

ID: Final = "A" * 22
REFERENCE: Final[dict[str, Any]] = json.loads(
    (Path(__file__).parents[1] / "answers" / "reference.json").read_text("utf-8")
)
CASES: Final[list[dict[str, Any]]] = REFERENCE["cases"]
Pieces = list[tuple[str, int | None]]


def formats_of(case: dict[str, Any]) -> Formats:
    marks = {int(token_id): text for token_id, text in case["marks"].items()}
    return Formats(case["tool_parser"], case["reasoning_parser"], marks)


def deltas_of(formats: Formats, tokens: Pieces) -> list[list[Delta]]:
    """What each token adds, and last what the end does."""
    parser = AnswerParser(ID, formats)
    found = [parser.push(index, text, token_id) for index, (text, token_id) in enumerate(tokens, 1)]
    return [*found, parser.finish()]


def message(formats: Formats, tokens: Pieces) -> AssistantMessage:
    return message_of(delta for deltas in deltas_of(formats, tokens) for delta in deltas)


def without_ids(found: AssistantMessage) -> tuple[str, str, list[tuple[str, str]]]:
    """The IDs depend on where the tokens end."""
    return found.content, found.reasoning, [(call.name, call.arguments) for call in found.tool_calls]


def letters(tokens: Pieces, marks: dict[int, str]) -> Pieces:
    """The same text with a token for each character; special tokens stay whole."""
    single: Pieces = []
    for text, token_id in tokens:
        mark = marks.get(token_id or -1)
        single += [(char, None) for char in (text.removesuffix(mark) if mark else text)]
        single += [(mark, token_id)] if mark else []
    return single


def joined(tokens: Pieces, marks: dict[int, str]) -> Pieces:
    """The same text in as few tokens as special ones allow."""
    whole: Pieces = []
    text = ""
    for piece, token_id in tokens:
        text += piece
        if token_id in marks:
            whole.append((text, token_id))
            text = ""
    return [*whole, (text, None)]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['model']}: {case['text'][:40]}")
def test_the_same_wherever_tokens_end(case: dict[str, Any]) -> None:
    formats, tokens = formats_of(case), [(text, token_id) for text, token_id in case["tokens"]]
    marks = dict(formats.marks)
    expected = without_ids(message(formats, tokens))
    assert without_ids(message(formats, letters(tokens, marks))) == expected
    whole = joined(tokens, marks)
    assert without_ids(message(formats, whole)) == expected
    single = letters(tokens, marks)
    for cut in range(1, len(single)):
        halves = joined(single[:cut], marks) + joined(single[cut:], marks)
        assert without_ids(message(formats, halves)) == expected, f"cut at {cut}"


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['model']}: {case['text'][:40]}")
def test_resumed_behind_any_token_the_deltas_are_the_same(case: dict[str, Any]) -> None:
    formats, tokens = formats_of(case), [(text, token_id) for text, token_id in case["tokens"]]
    undisturbed = deltas_of(formats, tokens)
    for behind in range(len(tokens) + 1):
        parser = AnswerParser(ID, formats)
        for index, (text, token_id) in enumerate(tokens[:behind], 1):
            parser.push(index, text, token_id)
        resumed = [parser.push(index, *token) for index, token in enumerate(tokens[behind:], behind + 1)]
        assert [*resumed, parser.finish()] == undisturbed[behind:]


LENIENT: Final = {
    '<tool_call>\n{"name": "get_weather", "arguments": {"city": Oslo': [("get_weather", '{"city": Oslo')],
    '{"name": "get_weather", "parameters": {"city": Oslo}}': [("get_weather", '{"city": Oslo}}')],
}
"""Outputs that vLLM's parsers of a whole text take for text, for their arguments aren't JSON: by then a reader of the
stream has seen the call begin (docs/adr/0025)."""


@pytest.mark.parametrize("case", [case for case in CASES if case["vllm"]], ids=lambda case: case["text"][:60])
def test_vllms_parsers_find_the_same(case: dict[str, Any]) -> None:
    content, reasoning, calls = without_ids(message(formats_of(case), [tuple(each) for each in case["tokens"]]))
    if case["text"] in LENIENT:
        assert calls == LENIENT[case["text"]]
        return
    theirs = case["vllm"]
    assert [(name, json.loads(arguments)) for name, arguments in calls] == [
        (name, json.loads(arguments)) for name, arguments in theirs["calls"]
    ]
    assert reasoning == theirs["reasoning"]
    # Special tokens are no text here, and blanks before calls belong to their format.
    plain = re.sub(r"\[TOOL_CALLS\]|<\|python_tag\|>", "", theirs["content"])
    assert content.strip() == plain.strip()


def parsed(tool_parser: str | None, text: str, reasoning_parser: str | None = None) -> AssistantMessage:
    return message(Formats(tool_parser, reasoning_parser), [(text, None)])


def test_harmonys_channels() -> None:
    """Analysis is reasoning, a message to a function a call, the rest content; headers are never shown."""
    found = [without_ids(parsed("harmony", each.text, "harmony")) for each in OUTPUTS if each.tool_parser == "harmony"]
    assert found == [
        ("It is sunny.", "", []),
        ("It is ☀️.", "They ask.", []),
        ("", "Call it.", [("get_weather", '{"city": "Oslo"}')]),
        ("I'll look.", "", [("get_weather", '{"city": "Oslo"}')]),
        ("No channel at all.", "", []),
        ("", "Cut off in the mid", []),
    ]


def test_a_marker_within_a_json_string_is_a_part_of_it() -> None:
    text = '<tool_call>{"name": "f", "arguments": {"a": "</tool_call> <tool_call>"}}</tool_call>'
    assert without_ids(parsed("hermes", text)) == ("", "", [("f", '{"a": "</tool_call> <tool_call>"}')])


def test_a_special_token_is_a_marker_and_its_characters_in_other_tokens_are_text() -> None:
    """What a user quotes, and a model repeats, calls no tool."""
    formats = Formats("mistral", None, {5: "[TOOL_CALLS]"})
    call = [("f", 7), ('{"a": 1}', 8)]
    assert message(formats, [("say [TOOL", 6), ("_CALLS]", 6), *call]).content == 'say [TOOL_CALLS]f{"a": 1}'
    assert without_ids(message(formats, [("say [TOOL_CALLS]", 5), *call])) == ("say ", "", [("f", '{"a": 1}')])


def test_text_around_calls_stays() -> None:
    text = 'one <tool_call>{"name": "f", "arguments": {}}</tool_call> two <tool_call>{"name": "f"}</tool_call> three'
    found = without_ids(parsed("hermes", text))
    assert found == ('one  two <tool_call>{"name": "f"}</tool_call> three', "", [("f", "{}")])


def test_a_call_of_an_impossible_name_is_text() -> None:
    for name in ("", "get weather", "a" * 65, "naïve"):
        text = json.dumps({"name": name, "arguments": {}}, ensure_ascii=False)
        assert without_ids(parsed("json", text)) == (text, "", [])


def test_arguments_that_are_a_text_or_null() -> None:
    for arguments, expected in (('"{\\"a\\": 1}"', '{"a": 1}'), ("null", "{}"), ('""', "{}")):
        text = f'{{"name": "f", "arguments": {arguments}}}'
        assert without_ids(parsed("json", text)) == ("", "", [("f", expected)])
    for arguments in ("1", "[1]", "true", '"\\ud800"', "1" * 5000, "[" * 5000):
        text = f'{{"name": "f", "arguments": {arguments}}}'
        assert without_ids(parsed("json", text)) == (text, "", [])


def test_deltas_come_as_early_as_they_are_certain() -> None:
    """The name as soon as arguments begin, then each token's part of them; nothing is sent twice."""
    tokens: Pieces = [
        (each, None) for each in ("Hi", " <tool", '_call>{"name": "f"', ', "arguments": {"a"', ": 1}}", "!")
    ]
    begin = CallBegin(0, call_id(ID, 2), "f")
    assert deltas_of(Formats("hermes"), tokens) == [
        [Content("Hi")],
        [Content(" ")],
        [],
        [begin, CallArguments(0, '{"a"')],
        [CallArguments(0, ": 1}"), CallEnd(0)],
        [Content("!")],
        [],
    ]


def test_ids_follow_from_the_request_and_the_token() -> None:
    tokens: Pieces = [("", None), ('{"name": "f", "arguments": {}}; {"name": "f", "arguments": {}}', None)]
    ids = [call.call_id for call in message(Formats("json"), tokens).tool_calls]
    assert ids == [call_id(ID, 2), call_id(ID, 2, 2)]
    assert len(set(ids)) == 2
    assert ids[0] == "call_c368d5bd9cb933231f87a444"  # SHA-256 of AAAAAAAAAAAAAAAAAAAAAA:2
    short = [call.call_id for call in message(Formats("mistral"), [("[TOOL_CALLS]f{}", None)]).tool_calls]
    assert short == [call_id(ID, 1, short=True)]
    assert re.fullmatch("[0-9a-f]{9}", short[0])


def test_reasoning_tokens_are_those_within_the_block() -> None:
    parser = AnswerParser(ID, Formats(None, "think", {1: "<think>", 2: "</think>"}))
    for index, (text, token_id) in enumerate((("<think>", 1), ("a", 3), ("b", 3), ("</think>", 2), ("c", 3)), 1):
        parser.push(index, text, token_id)
    assert parser.reasoning_tokens == 2


def test_reasoning_alone() -> None:
    assert without_ids(parsed(None, "<think>a</think>b <think>c</think>", "think")) == ("b <think>c</think>", "a", [])
    assert without_ids(parsed(None, "plain", "think")) == ("plain", "", [])
    assert without_ids(parsed(None, "\na</think>b", "think_begun")) == ("b", "\na", [])


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match="known are hermes, llama3_json"):
        Formats("pythonic")
    with pytest.raises(ValueError, match="known are think"):
        Formats(None, "thought")


PIECES: Final = st.sampled_from(
    [
        *(
            "<tool_call>",
            "</tool_call>",
            "[TOOL_CALLS]",
            "[ARGS]",
            "[CALL_ID]",
            "<|python_tag|>",
            "<think>",
            "</think>",
        ),
        *("[THINK]", "[/THINK]", "<|channel|>", "<|message|>", "<|end|>", "<|start|>", "<|call|>", "<tool_call>{"),
        *("analysis", "commentary", " to=functions.f", "<", "</", "[TOOL", "\\", "\n", " ", "f", "é", "1", "null", ":"),
        *('{"name": "f", "arguments": {', '{"name": "g", "parameters": {}}', '{"arguments": {"x": 1}, "name": "h"}'),
        *('"a": "', '"', "}", "}}", "{", "[", "]", ",", ";"),
    ]
)


@given(
    pieces=st.lists(PIECES | st.text(max_size=3), max_size=30),
    tool_parser=st.sampled_from([None, *TOOL_PARSERS]),
    reasoning_parser=st.sampled_from([None, *REASONING_PARSERS]),
    special=st.booleans(),
)
def test_anything_is_parsed_the_same_wherever_it_is_cut(
    pieces: list[str], tool_parser: str | None, reasoning_parser: str | None, special: bool
) -> None:
    """Hostile outputs: nothing raises, no text is doubled, indexes count up, each call begins and ends once."""
    markers = Formats(tool_parser, reasoning_parser).markers
    marks = {number: marker for number, marker in enumerate(markers, 1)} if special else {}
    ids = {marker: number for number, marker in marks.items()}
    formats = Formats(tool_parser, reasoning_parser, marks)
    tokens: Pieces = [(piece, ids.get(piece)) for piece in pieces]
    deltas = [delta for each in deltas_of(formats, tokens) for delta in each]
    found = without_ids(message_of(deltas))
    assert without_ids(message(formats, letters(tokens, marks))) == found
    assert without_ids(message(formats, joined(tokens, marks))) == found
    begun = [delta.index for delta in deltas if isinstance(delta, CallBegin)]
    assert begun == list(range(len(begun)))
    assert [delta.index for delta in deltas if isinstance(delta, CallEnd)] == begun
    shown = sum(len(delta.text) for delta in deltas if isinstance(delta, Content | Reasoning | CallArguments))
    assert shown <= sum(map(len, pieces)) + 2 * len(begun) + len(pieces)


def cpu_s(tool_parser: str, tokens: list[str]) -> float:
    began = time.process_time()
    message(Formats(tool_parser), [(text, None) for text in tokens])
    return time.process_time() - began


@pytest.mark.parametrize(
    ("tool_parser", "begin", "token", "tokens"),
    [
        ("hermes", "", "\n" * 64, 5000),
        ("json", '{"a":', "1" * 64, 1000),
        ("json", '{"a":"', "a" * 32, 1000),
        ("hermes", '<tool_call>{"a":"', "<tool_call>", 2000),
        ("mistral", "[TOOL_CALLS]", "a" * 64, 5000),
        ("mistral", "[TOOL_CALLS]", " " * 64, 5000),
        ("mistral", "[TOOL_CALLS]f", " " * 64, 5000),
    ],
    ids=["blank", "a number without end", "no call", "markers in a string", "no name", "blank name", "blanks"],
)
def test_a_token_costs_the_same_however_long_the_answer_is(
    tool_parser: str, begin: str, token: str, tokens: int
) -> None:
    """Eight times the tokens take eight times the time; what is held and copied anew with each takes 64 times."""
    short, long = (cpu_s(tool_parser, [begin, *[token] * count]) for count in (tokens, 8 * tokens))
    assert long < 24 * short


def test_what_can_be_no_name_is_content_at_once() -> None:
    deltas = deltas_of(Formats("mistral"), [("[TOOL_CALLS]", None), (" is", None), (" a marker", None), (".", None)])
    assert deltas == [[], [], [Content("[TOOL_CALLS] is a marker")], [Content(".")], []]


SCALARS: Final = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
)
VALUES: Final = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner))


@given(VALUES.map(lambda value: [value]), st.sampled_from([None, 2]), st.booleans())
def test_the_scanner_accepts_json(value: list[Any], indent: int | None, ascii_only: bool) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_only)
    scanner = JsonScanner()
    for number, char in enumerate(text, 1):
        scanner.push(char)
        assert not scanner.failed
        assert scanner.complete == (number == len(text))


@given(st.text(alphabet='[]{}",:\\u01ef.-+tru nl\n', max_size=12).map(lambda text: "[" + text))
def test_the_scanner_accepts_nothing_else(text: str) -> None:
    scanner, pushed = JsonScanner(), ""
    for char in text:
        pushed += char
        scanner.push(char)
        if scanner.failed or scanner.complete:
            break
    if scanner.complete:
        json.loads(pushed)
    elif scanner.failed:
        with pytest.raises(json.JSONDecodeError):
            json.loads(text)
