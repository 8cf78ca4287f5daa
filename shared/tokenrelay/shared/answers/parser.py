"""The parser of one answer: its entries in, deltas of content, reasoning and tool calls out.

A pure function of the entries from the first on: whoever resumes behind token N pushes tokens 1 to N first, and drops
what they give. It never fails: what isn't as the format says is text.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from tokenrelay.shared.answers.deltas import Deltas
from tokenrelay.shared.answers.formats import bare_json, harmony, hermes, mistral
from tokenrelay.shared.answers.formats.bare_json import BareJson
from tokenrelay.shared.answers.formats.harmony import Harmony
from tokenrelay.shared.answers.formats.hermes import Hermes
from tokenrelay.shared.answers.formats.mistral import Mistral
from tokenrelay.shared.answers.formats.stage import PlainText, Stage
from tokenrelay.shared.answers.formats.thinking import Thinking
from tokenrelay.shared.answers.lexer import Lexer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tokenrelay.shared.answers.deltas import Delta

TOOL_PARSERS: Final[Mapping[str, tuple[str, ...]]] = {
    "hermes": (hermes.BEGIN, hermes.END),
    "llama3_json": (bare_json.PYTHON_TAG,),
    "mistral": (mistral.TOOL_CALLS, mistral.ARGS, mistral.CALL_ID),
    "harmony": harmony.MARKERS,
    "json": (),
}
"""Names of formats of tool calls, and their markers."""
REASONING_PARSERS: Final[Mapping[str, tuple[str, ...]]] = {
    "think": ("<think>", "</think>"),
    "think_begun": ("<think>", "</think>"),
    "mistral": ("[THINK]", "[/THINK]"),
    "harmony": harmony.MARKERS,
}
"""Names of formats of reasoning, and their markers. `think_begun`: the prompt ends with the opening one."""


@dataclass(frozen=True, slots=True)
class Formats:
    """How a model writes what isn't content, as its stream's `started` event says. Raises ValueError for names that
    aren't known here."""

    tool_parser: str | None = None
    reasoning_parser: str | None = None
    marks: Mapping[int, str] = field(default_factory=dict)
    """Special tokens that stand in the stream's text: vocabulary ID → text."""

    def __post_init__(self) -> None:
        if self.tool_parser is not None and self.tool_parser not in TOOL_PARSERS:
            raise ValueError(f"unknown tool parser {self.tool_parser!a:.80}; known are {', '.join(TOOL_PARSERS)}")
        if self.reasoning_parser is not None and self.reasoning_parser not in REASONING_PARSERS:
            known = ", ".join(REASONING_PARSERS)
            raise ValueError(f"unknown reasoning parser {self.reasoning_parser!a:.80}; known are {known}")

    @property
    def markers(self) -> tuple[str, ...]:
        """The texts that the parsers look for."""
        tools, reasoning = (
            TOOL_PARSERS.get(self.tool_parser or "", ()),
            REASONING_PARSERS.get(self.reasoning_parser or "", ()),
        )
        return tuple(dict.fromkeys((*tools, *reasoning)))


class AnswerParser:
    """Parses the answer of request `request_id`, from which the calls' IDs follow."""

    def __init__(self, request_id: str, formats: Formats) -> None:
        self._deltas = Deltas(request_id, short_ids=formats.tool_parser == "mistral")
        self._lexer = Lexer(formats.markers, formats.marks)
        self._stage = _stage(formats, self._deltas)
        self._last = 0
        self.reasoning_tokens = 0

    def push(self, index: int, text: str, token_id: int | None = None) -> list[Delta]:
        """What token `index` adds; `text` is what the stream has of it."""
        self._last = index
        before = self._stage.reasons
        for piece in self._lexer.push(text, index, token_id):
            self._stage.push(piece)
        self.reasoning_tokens += before and self._stage.reasons
        return self._deltas.take()

    def finish(self, text: str = "") -> list[Delta]:
        """What the answer's end adds; `text` is the terminal event's."""
        for piece in (*self._lexer.push(text, self._last), *self._lexer.flush()):
            self._stage.push(piece)
        self._stage.finish()
        self._deltas.finish()
        return self._deltas.take()


def _stage(formats: Formats, deltas: Deltas) -> Stage:
    if "harmony" in (formats.tool_parser, formats.reasoning_parser):
        return Harmony(deltas, calls=formats.tool_parser == "harmony")
    tools = _tools(formats.tool_parser, deltas)
    match formats.reasoning_parser:
        case None:
            return tools
        case name:
            begin, end = REASONING_PARSERS[name]
            return Thinking(deltas, tools, (begin, end), begun=name == "think_begun")


def _tools(name: str | None, deltas: Deltas) -> Stage:
    match name:
        case "hermes":
            return Hermes(deltas)
        case "mistral":
            return Mistral(deltas)
        case "llama3_json" | "json":
            return BareJson(deltas)
        case _:
            return PlainText(deltas)
