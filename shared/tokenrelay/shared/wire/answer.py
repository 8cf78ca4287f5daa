"""Output assembly: the entries of a stream, in order, become one answer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tokenrelay.shared.answers.deltas import AssistantMessage, message_of
from tokenrelay.shared.answers.parser import AnswerParser, Formats
from tokenrelay.shared.wire.entries import (
    AnyEntry,
    Ended,
    Event,
    Migrated,
    Queued,
    Started,
    State,
    Token,
    Unknown,
    Usage,
)
from tokenrelay.shared.wire.transitions import StreamMachine

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from tokenrelay.shared.answers.deltas import Delta


@dataclass(frozen=True, slots=True)
class Timings:
    """Redis server times of a request's milestones, microseconds since 1970; None where it never came to that."""

    queued_us: int | None = None
    started_us: int | None = None
    first_token_us: int | None = None
    ended_us: int | None = None

    @property
    def queue_wait_s(self) -> float | None:
        return _seconds(self.queued_us, self.started_us)

    @property
    def ttft_s(self) -> float | None:
        """Time to first token, counted from submit."""
        return _seconds(self.queued_us, self.first_token_us)

    @property
    def total_s(self) -> float | None:
        return _seconds(self.queued_us, self.ended_us)


@dataclass(frozen=True, slots=True)
class Answer:
    """How a request ended, and all that it produced."""

    request_id: str
    state: State
    text: str
    finish_reason: str
    usage: Usage
    tokens: tuple[Token, ...] = field(repr=False)
    attempts: int
    timings: Timings
    model: str | None = None
    seed: int | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    code: str | None = None
    message: str | None = None
    cancelled_by: str | None = None
    said: AssistantMessage = field(default=AssistantMessage(), repr=False)
    """The text by its parts: content, reasoning and tool calls."""


class Assembler:
    """Takes a stream's entries from the first on and gives the answer at the end. Checks them by the protocol."""

    def __init__(self, request_id: str) -> None:
        self.machine = StreamMachine(request_id)
        self.tokens: list[Token] = []
        self.events: list[Event] = []

    def receive(self, entry: AnyEntry) -> bool:
        """Take the next entry; False for what adds nothing: a repeat, and a later version's event. Raises StreamGap,
        StreamChanged, ProtocolError."""
        if not self.machine.receive(entry) or isinstance(entry, Unknown):
            return False
        if isinstance(entry, Token):
            self.tokens.append(entry)
        else:
            self.events.append(entry)
        return True

    @property
    def ended(self) -> Ended | None:
        last = self.events[-1] if self.events else None
        return last if isinstance(last, Ended) else None

    @property
    def text(self) -> str:
        """All `text` fields so far, in order, the terminal event's included; without marks."""
        marks = self.formats.marks
        texts = (token.text.removesuffix(marks.get(token.token_id, "")) for token in self.tokens)
        return "".join(texts) + (self.ended.text if self.ended else "")

    @property
    def formats(self) -> Formats:
        """How the answer writes what isn't content."""
        return next((formats_of(event) for event in self.events if isinstance(event, Started)), Formats())

    def said(self) -> AssistantMessage:
        """What the tokens so far say. Held text may be missing in it until the end."""
        if not self.formats.markers and self.formats.tool_parser is None:
            return AssistantMessage(self.text)
        reader = DeltaReader(self.machine.request_id)
        entries = [*self.events[:-1], *self.tokens, self.events[-1]] if self.ended else [*self.events, *self.tokens]
        deltas = [reader.receive(entry) for entry in entries]
        return message_of(delta for each in (*deltas, reader.finish()) for delta in each)

    def answer(self, ended: Ended | None = None) -> Answer:
        """The answer; `ended` stands in where a reader reports an end that nobody could write (deadline passed)."""
        end = self.ended or ended
        if end is None:
            raise ValueError("the stream hasn't ended")
        claims = [event for event in self.events if isinstance(event, Started | Migrated)]
        started = next((event for event in claims if isinstance(event, Started)), None)
        queued = next((event for event in self.events if isinstance(event, Queued)), None)
        return Answer(
            request_id=self.machine.request_id,
            state=end.state,
            text=self.text,
            finish_reason=end.finish_reason,
            usage=end.usage,
            tokens=tuple(self.tokens),
            attempts=len(claims),
            timings=Timings(
                queued_us=queued.at_us if queued else None,
                started_us=started.at_us if started else None,
                first_token_us=self.tokens[0].at_us if self.tokens else None,
                ended_us=end.at_us,
            ),
            model=started.model if started else None,
            seed=started.seed if started else None,
            metadata=queued.metadata if queued else {},
            code=end.code,
            message=end.message,
            cancelled_by=end.cancelled_by,
            said=self.said(),
        )


def formats_of(started: Started) -> Formats:
    """The formats that the event names. Where this version doesn't know one, all text is content."""
    marks = {int(token_id): str(mark) for token_id, mark in (started.marks or {}).items() if token_id.isdecimal()}
    try:
        return Formats(started.tool_parser, started.reasoning_parser, marks)
    except ValueError:
        return Formats(marks=marks)


class DeltaReader:
    """Takes a stream's entries from the first on, and gives what each adds to the answer: content, reasoning, calls."""

    def __init__(self, request_id: str) -> None:
        self._request_id = request_id
        self._parser = AnswerParser(request_id, Formats())
        self._finished = False

    def receive(self, entry: AnyEntry) -> list[Delta]:
        match entry:
            case Started():
                self._parser = AnswerParser(self._request_id, formats_of(entry))
            case Token(index=index, text=text, token_id=token_id):
                return self._parser.push(index, text, token_id)
            case Ended(text=text):
                return self.finish(text)
        return []

    def finish(self, text: str = "") -> list[Delta]:
        """What the end adds, once; `text` is what the tokens held back."""
        if self._finished:
            return []
        self._finished = True
        return self._parser.finish(text)


def assemble(request_id: str, entries: Iterable[AnyEntry]) -> Answer:
    """The answer of a whole, ended stream. Raises StreamGap, ProtocolError; ValueError where it hasn't ended."""
    assembler = Assembler(request_id)
    for entry in entries:
        assembler.receive(entry)
    return assembler.answer()


def _seconds(begin_us: int | None, end_us: int | None) -> float | None:
    return None if begin_us is None or end_us is None else (end_us - begin_us) / 1e6
