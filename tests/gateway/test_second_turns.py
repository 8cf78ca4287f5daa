"""Answers as history: every shape of every answer, in every form in which clients store it, is accepted.

The shapes are made by the gateway's own encoders, read and accumulated by the `openai` package itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from hypothesis import given, settings
from hypothesis import strategies as st
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response

from tests.gateway.events import parse
from tests.gateway.test_views import RECORD, view_of
from tests.streams import whole_streams
from tokenrelay.gateway.openai.bodies.request_bodies import ChatBody, CompletionBody, ResponseBody
from tokenrelay.gateway.openai.bodies.submissions import read_submission
from tokenrelay.gateway.views.chat import failure_error, whole_completion
from tokenrelay.gateway.views.response import snapshot
from tokenrelay.shared.wire.answer import assemble
from tokenrelay.shared.wire.entries import Ended, State

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pydantic import BaseModel

    from tokenrelay.shared.wire.entries import Entry

    Message = dict[str, Any]
    Turn = list[Message]
    """The answer as messages or input items of the next request."""

RELAXED: Final = settings(deadline=None)  # a busy machine is no failure
FIRST: Final = {"role": "user", "content": "What is the weather today?"}
NEXT: Final = {"role": "user", "content": [{"type": "input_text", "text": "And tomorrow?"}]}
ANSWERED: Final = (State.COMPLETED, State.INCOMPLETE)

FORMS: Final[dict[str, Callable[[BaseModel], Message]]] = {
    "model_dump": lambda model: model.model_dump(),
    "model_dump(exclude_none)": lambda model: model.model_dump(exclude_none=True),
    "model_dump(exclude_unset)": lambda model: model.model_dump(exclude_unset=True),
    "to_dict": lambda model: model.model_dump(mode="json", by_alias=True, exclude_unset=True),
}
"""How clients store an answer."""
JUNK: Final = st.dictionaries(
    st.text(st.characters(codec="ascii", categories=["Ll"]), min_size=3, max_size=12).map(lambda name: f"x_{name}"),
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.lists(st.integers(), max_size=2),
    max_size=3,
)
"""Fields that other servers, proxies and frameworks add."""


def chat_messages(entries: list[Entry]) -> Iterator[BaseModel]:
    """The answer's message, whole and accumulated from the stream."""
    answer = assemble(RECORD.request_id, entries)
    yield ChatCompletion.model_validate(whole_completion(RECORD, "chat", [answer], [None])).choices[0].message
    state = ChatCompletionStreamState()
    for chunk in sent("chat", entries):
        state.handle_chunk(ChatCompletionChunk.model_validate(chunk))
    yield state.get_final_completion().choices[0].message


def response_items(entries: list[Entry]) -> Iterator[list[Message]]:
    """The answer's output items: whole, at the stream's end, and as each of the stream's events has them."""
    ended = entries[-1]
    assert isinstance(ended, Ended)
    text = assemble(RECORD.request_id, entries).text
    for each in (snapshot(RECORD, ended.state, ended, text), snapshot(RECORD, State.IN_PROGRESS, None, text)):
        response = Response.construct(**each)  # as the package does, whatever the values are
        yield from ([form(item) for item in response.output] for form in FORMS.values())
        yield each["output"]
    for event in sent("response", entries):
        if "response" in event:
            yield event["response"]["output"]
        elif "item" in event:
            yield [event["item"]]


def sent(view: str, entries: list[Entry]) -> list[Message]:
    """The stream's events as JSON, in one format."""
    raw = b"".join(view_of(view, entries).events).decode()
    return [event.json for event in parse(raw) if event.data != "[DONE]"]


def answered(entries: list[Entry]) -> bool:
    return isinstance(entries[-1], Ended) and entries[-1].state in ANSWERED


def without_ids(items: Turn) -> Turn:
    return [{name: value for name, value in item.items() if name not in ("id", "status", "type")} for item in items]


def with_junk(items: Turn, junk: Message) -> Turn:
    """`junk` in each message, and in each of its parts."""
    return [
        {**item, **junk, "content": [{**part, **junk} for part in item["content"]]}
        if isinstance(item["content"], list)
        else {**item, **junk}
        for item in items
        if "content" in item
    ]


def junk_paths(body: ChatBody | ResponseBody) -> set[str]:
    return {path.rpartition(".")[2] for path in body.ignored}


STREAMS: Final = whole_streams().filter(answered)


@RELAXED
@given(STREAMS, JUNK)
def test_a_chats_answer_is_the_next_turns_history(entries: list[Entry], junk: Message) -> None:
    for message in chat_messages(entries):
        for name, form in FORMS.items():
            kept = form(message)
            body = ChatBody.model_validate({"model": "weather", "messages": [FIRST, kept, NEXT]})
            content = assemble(RECORD.request_id, entries).text
            assert body.options()["messages"][1] == {"role": "assistant", "content": content}, name
            assert body.ignored == []
            (other,) = with_junk([kept], junk) or [{**kept, **junk}]
            strange = ChatBody.model_validate({"model": "weather", "messages": [FIRST, other, NEXT], **junk})
            assert strange.options() == body.options()
            assert junk_paths(strange) == {name for name, value in junk.items() if value is not None} | junk_paths(body)
            assert read_submission({"messages": [FIRST, kept, NEXT]})[0]["messages"] == body.options()["messages"]
            ResponseBody.model_validate({"model": "weather", "input": [FIRST, kept, NEXT]})


@RELAXED
@given(STREAMS, JUNK)
def test_a_responses_items_are_the_next_turns_input(entries: list[Entry], junk: Message) -> None:
    text = assemble(RECORD.request_id, entries).text
    for items in response_items(entries):
        for kept in (items, without_ids(items)):
            body = ResponseBody.model_validate({"model": "weather", "input": [FIRST, *kept, NEXT]})
            said = [message["content"] for message in body.options()["messages"][1:-1]]
            assert "".join(said) in (text, "")
            assert body.ignored == []
            strange = [FIRST, *with_junk(kept, junk), NEXT]
            assert ResponseBody.model_validate({"model": "weather", "input": strange}).options() == body.options()
            ChatBody.model_validate({"model": "weather", "messages": [FIRST, *kept, NEXT]})


@RELAXED
@given(STREAMS)
def test_a_responses_own_fields_are_the_next_requests(entries: list[Entry]) -> None:
    """Clients that build a request from the previous response: its metadata fields have no effect."""
    ended = entries[-1]
    assert isinstance(ended, Ended)
    response = snapshot(RECORD, ended.state, ended, "x")
    own = {"id", "object", "created_at", "status", "error", "incomplete_details", "output", "usage", "completed_at"}
    fields = {name: value for name, value in response.items() if name not in own}
    body = ResponseBody.model_validate({**fields, "input": "x"})
    assert body.ignored == []


@RELAXED
@given(STREAMS)
def test_a_completions_text_is_the_next_prompt(entries: list[Entry]) -> None:
    answer = assemble(RECORD.request_id, entries)
    text = Completion.model_validate(whole_completion(RECORD, "completion", [answer], [None])).choices[0].text
    chunks = [Completion.construct(**chunk) for chunk in sent("completion", entries)]
    streamed = "".join(choice.text for chunk in chunks for choice in chunk.choices)
    for prompt in (f"x{text}", [f"x{streamed}"]):
        body = CompletionBody.model_validate({"model": "weather", "prompt": prompt})
        assert body.submissions()[0]["prompt"] == f"x{answer.text}"


@RELAXED
@given(whole_streams().filter(lambda entries: not answered(entries)))
def test_what_came_of_an_answer_that_failed_is_taken_back_too(entries: list[Entry]) -> None:
    ended = entries[-1]
    assert isinstance(ended, Ended)
    assert failure_error(RECORD, ended)["code"]
    for items in response_items(entries):
        ResponseBody.model_validate({"model": "weather", "input": [FIRST, *items, NEXT]})
