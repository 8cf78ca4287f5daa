"""The state machine: generated from its own table, each transition allowed and each other one refused."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.streams import REQUEST_ID, ended, entry, migrated, queued, started, token, whole_streams
from tokenrelay.shared.errors import ProtocolError, StreamChanged, StreamGap
from tokenrelay.shared.wire.entries import Entry, EntryId, Migrated, State, Unknown
from tokenrelay.shared.wire.transitions import NOTHING, TRANSITIONS, StreamMachine

KINDS = ["token", "queued", "started", "migrated", *(state.value for state in State if state.terminal)]
STATES = list(TRANSITIONS)


def path_to(state: str) -> list[Entry]:
    """The shortest stream whose last entry leaves it in `state`."""
    begin: dict[str, list[Entry]] = {
        NOTHING: [],
        State.QUEUED: [queued()],
        State.IN_PROGRESS: [queued(), started()],
    }
    return begin[state] if state in begin else [queued(), started(), ended(EntryId(0, 3), State(state))]


def machine_in(state: str) -> StreamMachine:
    machine = StreamMachine(REQUEST_ID)
    for item in path_to(state):
        assert machine.receive(item)
    assert machine.state == state
    return machine


def following(machine: StreamMachine, kind: str) -> Entry:
    """An entry of `kind` with the one ID that comes next."""
    last = len(path_to(machine.state))
    return entry(kind, EntryId(1, 0) if kind == "token" else EntryId(0, last + 1))


@pytest.mark.parametrize(("state", "kind"), list(itertools.product(STATES, KINDS)))
def test_the_table_is_the_law(state: str, kind: str) -> None:
    machine = machine_in(state)
    allowed = TRANSITIONS[state].get(kind)
    if allowed is not None:
        assert machine.receive(following(machine, kind))
        assert machine.state == allowed
        assert machine.ended == (allowed not in (State.QUEUED, State.IN_PROGRESS))
        return
    # Behind `(no entry)` a token 1-0 is contiguous too: what refuses it is the table.
    with pytest.raises(ProtocolError, match=f"'{kind}' at .* may not follow") as caught:
        machine.receive(following(machine, kind))
    assert caught.value.request_id == REQUEST_ID
    assert machine.state == state


def test_every_state_is_in_the_table_and_the_ends_lead_nowhere() -> None:
    assert set(TRANSITIONS) == {NOTHING, *State}
    for state in State:
        assert bool(TRANSITIONS[state]) != state.terminal


@pytest.mark.parametrize("state", STATES)
def test_an_event_of_a_later_version_changes_no_state_and_stands_between_the_first_and_the_last(state: str) -> None:
    machine = machine_in(state)
    unknown = Unknown(EntryId(0, len(path_to(state)) + 1), 1, "preempted")
    if state not in (State.QUEUED, State.IN_PROGRESS):
        with pytest.raises(ProtocolError, match="'preempted' at .* may not follow"):
            machine.receive(unknown)
        return
    assert machine.receive(unknown)
    assert machine.state == state
    assert not machine.receive(unknown), "a repeat"
    with pytest.raises(StreamGap):
        machine.receive(ended(EntryId(0, unknown.entry_id.event + 2), State.CANCELLED))
    assert machine.receive(ended(EntryId(0, unknown.entry_id.event + 1), State.CANCELLED))


@pytest.mark.parametrize("index", [1, 5])
def test_expired_after_a_token_is_refused(index: int) -> None:
    machine = StreamMachine(REQUEST_ID, after=index)
    with pytest.raises(ProtocolError, match="'expired'"):
        machine.receive(ended(EntryId(index, 1), State.EXPIRED))
    assert machine.receive(ended(EntryId(index, 1), State.INCOMPLETE))


def test_a_migration_that_names_another_token_is_refused() -> None:
    machine = StreamMachine(REQUEST_ID, after=3)
    with pytest.raises(ProtocolError, match="'migrated' at 3-1"):
        machine.receive(Migrated(EntryId(3, 1), 1, "w2", 2, 3))
    assert machine.receive(migrated(EntryId(3, 1)))


@pytest.mark.parametrize("skipping", [EntryId(5, 0), EntryId(3, 2), EntryId(4, 1), EntryId(9, 9)])
def test_a_missing_entry_is_a_gap(skipping: EntryId) -> None:
    machine = StreamMachine(REQUEST_ID, after=3)
    with pytest.raises(StreamGap, match=f"{skipping} follows 3-0"):
        machine.receive(token(skipping.token) if skipping.event == 0 else migrated(skipping))
    assert machine.tokens == 3


def test_a_stream_without_its_beginning_is_a_gap() -> None:
    for item in (started(), token(2), ended(EntryId(0, 2))):
        with pytest.raises(StreamGap):
            StreamMachine(REQUEST_ID).receive(item)


@pytest.mark.parametrize("end", [EntryId(0, 3), EntryId(4, 1), EntryId(4, 9)])
def test_an_end_before_what_was_read_means_that_redis_lost_writes(end: EntryId) -> None:
    machine = StreamMachine(REQUEST_ID, after=5)
    with pytest.raises(StreamChanged, match=f"ended at {end}"):
        machine.receive(ended(end))


def test_another_end_than_the_one_read_means_that_redis_lost_writes() -> None:
    machine = StreamMachine(REQUEST_ID, after=5)
    machine.receive(migrated(EntryId(5, 1)))
    machine.receive(ended(EntryId(5, 2)))
    assert not machine.receive(ended(EntryId(5, 2))), "a repeat of the end is none of that"
    with pytest.raises(StreamChanged):
        machine.receive(ended(EntryId(5, 1)))


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_follows_the_end(kind: str) -> None:
    for state in filter(lambda state: state.terminal, State):
        machine = machine_in(state)
        with pytest.raises(ProtocolError):
            machine.receive(entry(kind, EntryId(1, 0) if kind == "token" else EntryId(0, 4)))


@settings(database=None, derandomize=True)
@given(whole_streams(), st.data())
def test_a_reader_may_come_back_at_any_token(entries: list[Entry], data: st.DataObject) -> None:
    """Readers resume from `N-0` and get the events behind token N again."""
    tokens = entries[-1].entry_id.token
    after = data.draw(st.integers(0, tokens))
    machine = StreamMachine(REQUEST_ID, after=after)
    rest = [item for item in entries if item.entry_id > (after, 0)]
    assert all(machine.receive(item) for item in rest)
    assert machine.ended
    assert machine.tokens == tokens
    assert not any(machine.receive(item) for item in rest if item.entry_id > (tokens, 0))


@settings(database=None, derandomize=True)
@given(whole_streams(), st.data())
def test_what_is_left_out_is_never_skipped(entries: list[Entry], data: st.DataObject) -> None:
    """All but an event right before a token: the token resets the event count, and nothing of the answer is lost."""
    missing = data.draw(st.integers(0, len(entries) - 2))
    if entries[missing].kind == "migrated" and entries[missing + 1].kind == "token":
        return
    machine = StreamMachine(REQUEST_ID)
    for item in entries[:missing]:
        machine.receive(item)
    with pytest.raises((StreamGap, ProtocolError)):
        machine.receive(entries[missing + 1])
