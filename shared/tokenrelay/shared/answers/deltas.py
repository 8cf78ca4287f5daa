"""What a parser gives out: deltas of content, reasoning and tool calls, and the message that they make up."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_ID_DIGITS: Final = 24
_SHORT_ID_DIGITS: Final = 9
"""Mistral's templates refuse IDs that aren't 9 letters or digits."""


@dataclass(frozen=True, slots=True)
class Content:
    """Text for the user."""

    text: str


@dataclass(frozen=True, slots=True)
class Reasoning:
    """Text of the model's reasoning."""

    text: str


@dataclass(frozen=True, slots=True)
class CallBegin:
    """Call `index` (from 0) begins; its arguments follow."""

    index: int
    call_id: str
    name: str


@dataclass(frozen=True, slots=True)
class CallArguments:
    """The next part of call `index`'s arguments, as the model wrote them."""

    index: int
    text: str


@dataclass(frozen=True, slots=True)
class CallEnd:
    """The arguments of call `index` are whole, or the answer has ended within them."""

    index: int


Delta = Content | Reasoning | CallBegin | CallArguments | CallEnd


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of one of the request's tools. `arguments` is JSON unless the model wrote something else, or was cut."""

    call_id: str
    name: str
    arguments: str = ""


@dataclass(frozen=True, slots=True)
class AssistantMessage:
    """An answer as a message of the assistant's."""

    content: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()

    def as_message(self) -> dict[str, Any]:
        """As one of a conversation's messages: tools' results follow it."""
        calls = [{"id": call.call_id, "name": call.name, "arguments": call.arguments} for call in self.tool_calls]
        message: dict[str, Any] = {"role": "assistant", "content": self.content or (None if calls else "")}
        if calls:
            message["tool_calls"] = calls
        return {**message, "reasoning": self.reasoning} if self.reasoning else message


def message_of(deltas: Iterable[Delta]) -> AssistantMessage:
    """The message that these deltas, from the first on, make up."""
    texts: dict[type, list[str]] = {Content: [], Reasoning: []}
    calls: list[ToolCall] = []
    arguments: list[list[str]] = []
    for delta in deltas:
        match delta:
            case Content(text) | Reasoning(text):
                texts[type(delta)].append(text)
            case CallBegin(_, call_id, name):
                calls.append(ToolCall(call_id, name))
                arguments.append([])
            case CallArguments(index, text):
                arguments[index].append(text)
            case CallEnd():
                pass
    whole = tuple(replace(call, arguments="".join(parts)) for call, parts in zip(calls, arguments, strict=True))
    return AssistantMessage("".join(texts[Content]), "".join(texts[Reasoning]), whole)


class Deltas:
    """Collects deltas for `take`, joining neighbours. Owns calls' indexes and IDs.

    Blank content is held until something visible follows it: what stands between two calls, or before the first,
    belongs to their format.
    """

    def __init__(self, request_id: str, *, short_ids: bool = False) -> None:
        self._request_id, self._short = request_id, short_ids
        self._deltas: list[Delta] = []
        self._blank: list[str] | None = []  # held content; None once visible content has come
        self._calls = 0
        self._last = (-1, 0)  # the token in which the last call began, and how many began in it
        self._written = False

    def content(self, text: str) -> None:
        if self._blank is not None:
            self._blank.append(text)
            if not text.strip():
                return
            text, self._blank = "".join(self._blank), None
        if text:
            self._deltas.append(Content(text))

    def reasoning(self, text: str) -> None:
        if text:
            self._deltas.append(Reasoning(text))

    def begin(self, name: str, token: int) -> None:
        """Begin the next call; its first character stands in the text of token `token`."""
        self._blank, self._written = [], False
        self._deltas.append(CallBegin(self._calls, self._call_id(token), name))
        self._calls += 1

    def arguments(self, text: str) -> None:
        """Add to the last call's arguments."""
        if text:
            self._written = True
            self._deltas.append(CallArguments(self._calls - 1, text))

    def end(self) -> None:
        """End the last call. One without arguments has an empty object of them."""
        if not self._written:
            self.arguments("{}")
        self._deltas.append(CallEnd(self._calls - 1))

    def finish(self) -> None:
        """Release held content, where the answer has no calls that it may belong to."""
        held = "".join(self._blank or ())
        if held and not self._calls:
            self._deltas.append(Content(held))
        self._blank = None

    def take(self) -> list[Delta]:
        """What came since the last `take`."""
        taken, self._deltas = self._deltas, []
        return list(_joined(taken)) if len(taken) > 1 else taken

    def _call_id(self, token: int) -> str:
        count = self._last[1] + 1 if self._last[0] == token else 1
        self._last = (token, count)
        return call_id(self._request_id, token, count, short=self._short)


def _joined(deltas: Iterable[Delta]) -> Iterator[Delta]:
    """Those of one kind that follow each other as one: between the arguments of two calls stands the second's begin."""
    for _, run in groupby(deltas, type):
        first, *more = run
        if more and isinstance(first, Content | Reasoning | CallArguments):
            texts = (each.text for each in more if isinstance(each, Content | Reasoning | CallArguments))
            yield replace(first, text=first.text + "".join(texts))
        else:
            yield from (first, *more)


def call_id(request_id: str, token: int, count: int = 1, *, short: bool = False) -> str:
    """The ID of the call that begins in token `token`, as the `count`th of those that do: docs/wire.md."""
    name = f"{request_id}:{token}" if count == 1 else f"{request_id}:{token}:{count}"
    digits = hashlib.sha256(name.encode()).hexdigest()
    return digits[:_SHORT_ID_DIGITS] if short else f"call_{digits[:_ID_DIGITS]}"
