"""Parsing of entries: valid ones are typed, invalid ones raise a ProtocolError that names entry and field."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.streams import raw
from tokenrelay.shared.errors import ProtocolError
from tokenrelay.shared.wire.entries import (
    Ended,
    EntryId,
    Migrated,
    Queued,
    Started,
    State,
    Token,
    TokenLogprob,
    Unknown,
    Usage,
    parse_entry,
    parse_entry_id,
)

QUEUED = {"event": "queued", "at_us": 1, "wire": 1}
STARTED = {"event": "started", "at_us": 2, "worker": "w", "attempt": 1, "model": "m", "prompt_tokens": 7, "seed": 42}
MIGRATED = {"event": "migrated", "at_us": 3, "worker": "w", "attempt": 2, "resumed_at": 5}
USAGE = {"prompt_tokens": 7, "completion_tokens": 4, "recomputed_tokens": 9}
ENDED = {"event": "failed", "at_us": 4, "finish_reason": "error", "text": "!", **USAGE, "code": "c", "message": "m"}
TOKEN = {"text": " sunny", "token": 17, "at_us": 1_763_808_000_123_456}


@pytest.mark.parametrize(
    ("entry_id", "fields", "entry"),
    [
        ("4-0", TOKEN, Token(4, " sunny", 17, 1_763_808_000_123_456)),
        ("0-1", QUEUED, Queued(EntryId(0, 1), 1, 1)),
        ("0-1", {**QUEUED, "metadata": '{"a": [1]}'}, Queued(EntryId(0, 1), 1, 1, {"a": [1]})),
        ("0-2", STARTED, Started(EntryId(0, 2), 2, "w", 1, "m", 7, 42)),
        ("4-1", MIGRATED, Migrated(EntryId(4, 1), 3, "w", 2, 5)),
        ("4-2", ENDED, Ended(EntryId(4, 2), 4, State.FAILED, "error", "!", Usage(7, 4, 9), "c", "m")),
    ],
)
def test_entries_are_typed_whether_replies_are_decoded_or_not(
    entry_id: str, fields: dict[str, Any], entry: object
) -> None:
    assert parse_entry(entry_id.encode(), raw(fields)) == entry
    assert parse_entry(entry_id, {name: str(value) for name, value in fields.items()}) == entry


@pytest.mark.parametrize("fields", [TOKEN, QUEUED, STARTED, MIGRATED, ENDED])
def test_a_missing_field_is_named(fields: dict[str, Any]) -> None:
    entry_id = "4-1" if "event" in fields else "4-0"
    for name in set(fields) - {"event", "code", "message"}:
        left = {field: value for field, value in fields.items() if field != name}
        with pytest.raises(ProtocolError, match=rf"{entry_id}.*{name}"):
            parse_entry(entry_id, raw(left))


@pytest.mark.parametrize(
    ("entry_id", "fields", "words"),
    [
        ("4-1", TOKEN, "is a token"),
        ("4-0", QUEUED, "is an event"),
        ("4-1", {**ENDED, "event": "refused"}, "unknown terminal event 'refused': a newer version"),
        ("4-1", {"event": "preempted"}, "no field 'at_us'"),
        ("4-0", {**TOKEN, "token": "many"}, "'token' is 'many', not a whole number"),
        ("4-0", {**TOKEN, "at_us": "1.7e+15"}, "not a whole number"),
        ("0-1", {**QUEUED, "metadata": "{"}, "no JSON object"),
        ("0-1", {**QUEUED, "metadata": "[1]"}, "no JSON object"),
        ("0-1", {**QUEUED, "metadata": "[" * 100_000}, "no JSON object"),
    ],
)
def test_what_is_no_entry_says_why(entry_id: str, fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ProtocolError, match=words.replace("[", r"\[")):
        parse_entry(entry_id, raw(fields))


@pytest.mark.parametrize("kind", ["preempted", "in_progress", "[DONE]", ""])
def test_an_event_of_a_later_version_is_none_that_ends_the_request(kind: str) -> None:
    fields = {"event": kind, "at_us": 3, "worker": "w1", "attempt": 2, "anything": "else"}
    assert parse_entry("4-1", raw(fields)) == Unknown(EntryId(4, 1), 3, kind)


@pytest.mark.parametrize(
    ("entry_id", "fields"), [("4-0", TOKEN), ("0-1", QUEUED), ("0-2", STARTED), ("4-1", MIGRATED), ("4-1", ENDED)]
)
def test_a_later_versions_fields_change_nothing(entry_id: str, fields: dict[str, Any]) -> None:
    known = parse_entry(entry_id, raw(fields))
    assert parse_entry(entry_id, raw({**fields, "later": "[[1,-0.5]]", "later_parser": "think"})) == known


def test_a_tokens_logprobs_are_read() -> None:
    raw_logprobs = '[[7,-0.5,"w6k="],[9,-9999,"/w=="]]'
    entry = parse_entry("4-0", raw({**TOKEN, "logprobs": raw_logprobs}))
    assert isinstance(entry, Token)
    assert entry.logprobs == (TokenLogprob(7, -0.5, "é".encode()), TokenLogprob(9, -9999, b"\xff"))
    assert [each.text for each in entry.logprobs] == ["é", "\ufffd"]


@pytest.mark.parametrize(
    "bad", ["", "{", "7", "[7]", "[[1,2]]", '[["x",1,""]]', '[[1,"x",""]]', '[[1,2,"*"]]', "[[1,2,3]]"]
)
def test_logprobs_that_can_not_be_read_are_an_error(bad: str) -> None:
    with pytest.raises(ProtocolError, match="entry 4-0: its logprobs can't be read"):
        parse_entry("4-0", raw({**TOKEN, "logprobs": bad}))


@pytest.mark.parametrize("bad", ["", "7", "7-", "-0", "a-b", "7-0-0", "-1-0", "7_0-0", b"7 -0", "1.0-0"])
def test_other_strings_are_no_entry_ids(bad: object) -> None:
    with pytest.raises(ProtocolError):
        parse_entry_id(bad)


@settings(database=None, derandomize=True)
@given(st.integers(0, 2**63), st.integers(0, 2**63))
def test_entry_ids_go_there_and_back(index: int, event: int) -> None:
    assert parse_entry_id(str(EntryId(index, event))) == (index, event)


@settings(database=None, derandomize=True)
@given(st.text(max_size=6), st.dictionaries(st.text(max_size=8) | st.sampled_from(sorted(ENDED)), st.text(max_size=8)))
def test_garbage_is_a_protocol_error_and_nothing_else(entry_id: str, fields: dict[str, str]) -> None:
    with suppress(ProtocolError):
        parse_entry(entry_id, fields)


def test_bytes_that_are_no_utf8_do_not_stop_a_reader() -> None:
    entry = parse_entry(b"1-0", {b"text": b"\xff", b"token": b"1", b"at_us": b"1"})
    assert isinstance(entry, Token)
    assert entry.text == "\udcff"


def test_which_states_are_the_end() -> None:
    assert {state for state in State if not state.terminal} == {State.QUEUED, State.IN_PROGRESS}


def test_kinds_are_what_the_protocol_table_names() -> None:
    assert Token(1, "", 1, 1).kind == "token"
    assert Ended(EntryId(1, 1), 1, State.EXPIRED, "deadline", "", Usage(1, 1)).kind == "expired"


def test_the_formats_of_an_answer_are_read() -> None:
    started = {**STARTED, "tool_parser": "mistral", "reasoning_parser": "think", "marks": '{"5": "[TOOL_CALLS]"}'}
    entry = parse_entry("0-2", raw(started))
    assert isinstance(entry, Started)
    assert (entry.tool_parser, entry.reasoning_parser, entry.marks) == ("mistral", "think", {"5": "[TOOL_CALLS]"})
    with pytest.raises(ProtocolError, match="marks"):
        parse_entry("0-2", raw({**started, "marks": "[5]"}))
