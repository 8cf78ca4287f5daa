"""Output assembly with repeated, late and missing entries."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.streams import REQUEST_ID, ended, migrated, queued, started, token, whole_streams
from tokenrelay.shared.errors import ProtocolError, StreamChanged, StreamError, StreamGap
from tokenrelay.shared.wire.answer import Assembler, Timings, assemble
from tokenrelay.shared.wire.entries import Entry, EntryId, State, Token

ENTRIES: list[Entry] = [
    queued(),
    started(),
    token(1, "It"),
    token(2, " is"),
    migrated(EntryId(2, 1)),
    token(3, " sun"),
    ended(EntryId(3, 1), State.COMPLETED, "ny."),
]


def test_the_answer_is_all_text_in_order_the_terminal_one_included() -> None:
    answer = assemble(REQUEST_ID, ENTRIES)
    assert answer.text == "It is sunny."
    assert (answer.state, answer.finish_reason, answer.attempts) == (State.COMPLETED, "stop", 2)
    assert (answer.model, answer.seed, answer.metadata) == ("weather", 42, {"a": 1})
    assert [item.index for item in answer.tokens] == [1, 2, 3]
    assert answer.timings == Timings(900, 950, 1_001, 2_000)
    assert answer.timings.queue_wait_s == pytest.approx(50e-6)
    assert answer.timings.ttft_s == pytest.approx(101e-6)
    assert answer.timings.total_s == pytest.approx(1_100e-6)


def test_a_stream_that_goes_on_has_no_answer() -> None:
    with pytest.raises(ValueError, match="hasn't ended"):
        assemble(REQUEST_ID, ENTRIES[:-1])


def test_an_end_that_nobody_wrote_can_stand_in() -> None:
    assembler = Assembler(REQUEST_ID)
    assembler.receive(queued())
    answer = assembler.answer(ended(EntryId(0, 2), State.EXPIRED))
    assert (answer.state, answer.text, answer.attempts) == (State.EXPIRED, "", 0)
    assert answer.timings.ttft_s is None


def test_a_refused_entry_leaves_no_trace() -> None:
    assembler = Assembler(REQUEST_ID)
    for entry in ENTRIES[:3]:
        assembler.receive(entry)
    with pytest.raises(StreamGap):
        assembler.receive(token(3, " sun"))
    assert assembler.text == "It"
    assert assembler.receive(token(2, " is"))


@settings(database=None, derandomize=True)
@given(whole_streams())
def test_every_whole_stream_assembles(entries: list[Entry]) -> None:
    answer = assemble(REQUEST_ID, entries)
    assert answer.text == "".join(getattr(entry, "text", "") for entry in entries)
    assert [item.index for item in answer.tokens] == list(range(1, len(answer.tokens) + 1))


@settings(database=None, derandomize=True, max_examples=300)
@given(whole_streams(), st.data())
def test_repeats_and_late_entries_change_nothing(entries: list[Entry], data: st.DataObject) -> None:
    """A reader that reconnects may get any range of earlier entries again, at any time."""
    assembler = Assembler(REQUEST_ID)
    for position, entry in enumerate(entries):
        assert assembler.receive(entry)
        repeated = data.draw(st.lists(st.sampled_from(entries[: position + 1]), max_size=3))
        assert not any(assembler.receive(again) for again in repeated)
    assert assembler.answer() == assemble(REQUEST_ID, entries)


@settings(database=None, derandomize=True, max_examples=300)
@given(whole_streams(), st.data())
def test_no_delivery_skips_silently(entries: list[Entry], data: st.DataObject) -> None:
    """Whatever is dropped, repeated or moved: the tokens are a prefix, and an end is only reported with all of them."""
    delivered = data.draw(st.lists(st.sampled_from(entries), max_size=2 * len(entries)))
    assembler = Assembler(REQUEST_ID)
    taken: list[Entry] = []
    try:
        for entry in delivered:
            if assembler.receive(entry):
                taken.append(entry)
    except (StreamError, ProtocolError):
        assert not assembler.ended
    whole = [entry for entry in entries if isinstance(entry, Token)]
    assert assembler.tokens == whole[: len(assembler.tokens)]
    assert taken == sorted(taken, key=lambda entry: entry.entry_id)
    if assembler.ended:
        assert assembler.text == assemble(REQUEST_ID, entries).text


@settings(database=None, derandomize=True)
@given(whole_streams(), st.data())
def test_a_dropped_token_is_a_gap(entries: list[Entry], data: st.DataObject) -> None:
    indexes = [position for position, entry in enumerate(entries) if isinstance(entry, Token)]
    if not indexes:
        return
    dropped = data.draw(st.sampled_from(indexes))
    with pytest.raises(StreamGap):
        assemble(REQUEST_ID, entries[:dropped] + entries[dropped + 1 :])


@settings(database=None, derandomize=True)
@given(whole_streams())
def test_an_end_with_fewer_tokens_than_were_read_is_no_answer(entries: list[Entry]) -> None:
    tokens = entries[-1].entry_id.token
    if not tokens:
        return
    assembler = Assembler(REQUEST_ID)
    for entry in entries[:-1]:
        assembler.receive(entry)
    with pytest.raises(StreamChanged):
        assembler.receive(ended(EntryId(tokens - 1, 9)))
