"""Views over random streams and texts: no model output breaks an event, and all readers get the same events."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.gateway.events import parse
from tests.streams import REQUEST_ID, whole_streams
from tokenrelay.gateway.records.record import Annotation, Record, split_annotation, with_annotation
from tokenrelay.gateway.views.chat import ChatEncoder
from tokenrelay.gateway.views.raw import RawEncoder
from tokenrelay.gateway.views.response import ResponseEncoder
from tokenrelay.gateway.views.sse import encode
from tokenrelay.gateway.views.view import View
from tokenrelay.shared.options import filled
from tokenrelay.shared.wire.entries import Ended, Entry, EntryId, Migrated, State, Token

if TYPE_CHECKING:
    from collections.abc import Callable

    from tokenrelay.gateway.views.view import Encoder

NASTY: Final = st.text(
    st.one_of(
        st.sampled_from("\n\r\0\t\x0b\x0c\x1c\x85\u2028\u2029\ufeff\u202e\u200f:# dataeventid"),
        st.sampled_from("😀👩\u200d👩\u200d👧العربيةעברית"),
        st.characters(),
    ),
    max_size=30,
)
RECORD: Final = Record(
    request_id=REQUEST_ID,
    state=State.QUEUED,
    tokens=0,
    attempts=0,
    queue="tokenrelay.weather.default",
    owner="",
    deadline_us=0,
    created_us=1_700_000_000_000_000,
    ended=None,
    cancelled_by=None,
    options=filled({"prompt": "x"}),
    annotation=Annotation(),
    metadata={},
    has_stream=True,
)
ENCODERS: Final[dict[str, Callable[[], Encoder]]] = {
    "raw": RawEncoder,
    "chat": lambda: ChatEncoder(RECORD, "chat", "last"),
    "counted": lambda: ChatEncoder(RECORD, "chat", "every"),
    "completion": lambda: ChatEncoder(RECORD, "completion", "none"),
    "response": lambda: ResponseEncoder(RECORD),
}


def encoder(name: str) -> Encoder:
    return ENCODERS[name]()


def view_of(name: str, entries: list[Entry]) -> View:
    view = View(encoder(name))
    for entry in entries:
        view.receive(entry)
    return view


@given(text=NASTY, kind=st.sampled_from(["token", "response.output_text.delta"]))
def test_any_text_is_one_event(text: str, kind: str) -> None:
    raw = encode({"text": text}, event=kind, entry_id=EntryId(3, 0))
    (event,) = parse(raw.decode())
    assert (event.kind, event.last_id, event.json) == (kind, "3-0", {"text": text})
    assert raw.endswith(b"\n\n")
    assert raw.count(b"\n\n") == 1
    assert b"\r" not in raw


def test_bytes_that_are_no_text_go_out_escaped() -> None:
    broken = b"\xff\xfe".decode("utf-8", "surrogateescape")
    (event,) = parse(encode({"text": broken}).decode())
    assert event.json == {"text": broken}


@given(entries=whole_streams(), texts=st.lists(NASTY, min_size=9, max_size=9))
def test_the_raw_stream_is_the_stream(entries: list[Entry], texts: list[str]) -> None:
    said = [
        Token(each.index, texts[each.index], each.token_id, each.at_us) if isinstance(each, Token) else each
        for each in entries
    ]
    events = list(parse(b"".join(view_of("raw", said).events).decode()))
    assert [event.last_id for event in events] == [str(entry.entry_id) for entry in said]
    assert [event.kind for event in events] == [entry.kind for entry in said]
    assert [event.json["text"] for event in events if event.kind == "token"] == [
        entry.text for entry in said if isinstance(entry, Token)
    ]


@pytest.mark.parametrize("name", ENCODERS)
@given(data=st.data(), entries=whole_streams())
def test_a_reader_that_resumes_reads_what_the_others_do(name: str, data: st.DataObject, entries: list[Entry]) -> None:
    """For any last entry, and any backlog at the time of attaching."""
    view = view_of(name, entries)
    everything = b"".join(view.events)
    cut = data.draw(st.integers(0, len(entries) - 1))
    after = entries[cut].entry_id
    behind = b"".join(view.events[view.position_after(after) :])
    assert everything.endswith(behind)
    grown = view_of(name, entries[: cut + 1])
    position = len(grown.events)
    for entry in entries[cut + 1 :]:
        grown.receive(entry)
    assert b"".join(grown.events[position:]) == behind
    assert view.position_after(EntryId(0, 0)) == 0


@given(entries=whole_streams())
def test_sequence_numbers_are_dense_and_know_no_hand_over(entries: list[Entry]) -> None:
    events = [json.loads(event.data) for event in parse(b"".join(view_of("response", entries).events).decode())]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    straight: list[Entry] = [entry for entry in entries if not isinstance(entry, Migrated)]
    again = [json.loads(event.data) for event in parse(b"".join(view_of("response", straight).events).decode())]
    assert again == events
    deltas = [event for event in events if event["type"] == "response.output_text.delta"]
    assert [event["sequence_number"] for event in deltas] == [4 + number for number in range(len(deltas))]


def said(entries: list[Entry]) -> str:
    return "".join(entry.text for entry in entries if isinstance(entry, Token | Ended))


@given(entries=whole_streams())
def test_every_vocabulary_says_the_same_text(entries: list[Entry]) -> None:
    chat: list[Any] = [
        event.json for event in parse(b"".join(view_of("chat", entries).events).decode()) if event.data != "[DONE]"
    ]
    plain: list[Any] = [
        event.json
        for event in parse(b"".join(view_of("completion", entries).events).decode())
        if event.data != "[DONE]"
    ]
    deltas: list[Any] = [
        event.json
        for event in parse(b"".join(view_of("response", entries).events).decode())
        if event.kind == "response.output_text.delta"
    ]
    choices = [chunk["choices"][0] for chunk in chat if chunk.get("choices")]
    assert "".join(choice["delta"].get("content", "") for choice in choices) == said(entries)
    assert "".join(chunk["choices"][0]["text"] for chunk in plain if "choices" in chunk) == said(entries)
    assert "".join(event["delta"] for event in deltas) == said(entries)


@given(entries=whole_streams())
def test_usage_so_far_counts_the_tokens_up_to_each_chunk(entries: list[Entry]) -> None:
    """vLLM's `continuous_usage_stats`, which benchmarks use: 0 with the role, N with token N's text."""
    texts = [replace(entry, text="x") if isinstance(entry, Token) else entry for entry in entries]
    events = list(parse(b"".join(view_of("counted", texts).events).decode()))
    chunks: list[Any] = [event.json for event in events if event.data != "[DONE]"]
    usages = [chunk["usage"] for chunk in chunks if "usage" in chunk]
    count = sum(isinstance(entry, Token) for entry in entries)
    counted = [usage["completion_tokens"] for usage in usages]
    assert counted[: count + 1] in ([*range(count + 1)], [])  # no chunk at all where nobody ever started it
    assert set(counted[count + 1 :]) <= {count}
    assert all(usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"] for usage in usages)


@given(entries=whole_streams())
def test_every_stream_ends_as_its_clients_expect(entries: list[Entry]) -> None:
    ended = entries[-1]
    assert isinstance(ended, Ended)
    chat = list(parse(b"".join(view_of("chat", entries).events).decode()))
    assert (chat[-1].data, chat[-1].last_id) == ("[DONE]", str(ended.entry_id))
    answered = ended.state in (State.COMPLETED, State.INCOMPLETE)
    assert ("error" in chat[-2].json) is not answered
    last: Any = list(parse(b"".join(view_of("response", entries).events).decode()))[-1].json
    kinds = {
        State.COMPLETED: "response.completed",
        State.INCOMPLETE: "response.incomplete",
        State.CANCELLED: "response.incomplete",
    }
    assert last["type"] == kinds.get(ended.state, "response.failed")
    assert (last["response"]["error"] is None) is (answered or ended.state is State.CANCELLED)
    assert bool(last["response"]["output"]) is bool(said(entries))


@given(
    metadata=st.dictionaries(st.text(max_size=5), st.integers(), max_size=3),
    annotation=st.builds(Annotation, api=st.sampled_from(["", "chat"]), fleeting=st.booleans(), store=st.booleans()),
)
def test_an_annotation_round_trips_outside_the_callers_metadata(
    metadata: dict[str, int], annotation: Annotation
) -> None:
    assert split_annotation(with_annotation(metadata, annotation)) == (annotation, metadata)


@pytest.mark.parametrize("forged", [1, "x", None, [], {"no_such": 1}])
def test_what_is_no_mark_is_none(forged: object) -> None:
    assert split_annotation({"tokenrelay.gateway": forged, "a": 1}) == (Annotation(), {"a": 1})
