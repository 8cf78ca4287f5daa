"""The channels of OpenAI's open models: analysis is reasoning, commentary to a function a call, the rest content.

`<|channel|>analysis<|message|>…<|end|>`, `<|start|>assistant<|channel|>final<|message|>…<|return|>`; a call's header
names the function behind `to=`, its message holds the arguments up to `<|call|>`. The prompt ends behind
`<|start|>assistant`, so an answer begins within a header.
"""

from __future__ import annotations

import re
from enum import Enum, auto
from typing import TYPE_CHECKING, Final

from tokenrelay.shared.answers.formats.call_json import NAME
from tokenrelay.shared.answers.formats.stage import Stage

if TYPE_CHECKING:
    from tokenrelay.shared.answers.deltas import Deltas
    from tokenrelay.shared.answers.lexer import Piece

START: Final = "<|start|>"
CHANNEL: Final = "<|channel|>"
CONSTRAIN: Final = "<|constrain|>"
MESSAGE: Final = "<|message|>"
END: Final = "<|end|>"
CALL: Final = "<|call|>"
RETURN: Final = "<|return|>"
MARKERS: Final = (START, CHANNEL, CONSTRAIN, MESSAGE, END, CALL, RETURN)
_CHANNEL: Final = re.compile(re.escape(CHANNEL) + r"\s*(\w+)")
_FUNCTION: Final = re.compile(r"\bto=functions\.([^\s<]+)")


class _Body(Enum):
    CONTENT = auto()
    REASONING = auto()
    CALL = auto()


class Harmony(Stage):
    """Headers are never shown. An answer without any is content."""

    def __init__(self, deltas: Deltas, *, calls: bool = True) -> None:
        """Without `calls` a message to a function is content."""
        super().__init__(deltas)
        self._calls = calls
        self._header: list[Piece] = []
        self._body: _Body | None = None
        self._written: set[_Body] = set()
        self._separator = ""

    @property
    def reasons(self) -> bool:
        return self._body is _Body.REASONING

    def _read(self, piece: Piece) -> None:
        if self._body is None:
            if piece.marks(MESSAGE):
                self._open(piece)
            elif not (piece.marks(END) or piece.marks(CALL) or piece.marks(RETURN)):
                self._header.append(piece)
        elif piece.is_marker and not (piece.marks(MESSAGE) or piece.marks(CONSTRAIN)):
            self._close()
            self._again([piece])
        else:
            self._write(self._body, piece.shown)

    def _open(self, message: Piece) -> None:
        token = (self._header or [message])[0].token
        header = "".join(" " if piece.marks(CONSTRAIN) else piece.text for piece in self._header)
        channel, function = _CHANNEL.search(header), _FUNCTION.search(header)
        self._header, self._body, self._separator = [], _Body.CONTENT, ""
        if self._calls and function and NAME.fullmatch(function[1]):
            self._body = _Body.CALL
            self._deltas.begin(function[1], token)
        elif channel and channel[1] == "analysis":
            self._body = _Body.REASONING
        if self._body in self._written:
            self._separator = "\n"

    def _write(self, body: _Body, text: str) -> None:
        if not text:
            return
        match body:
            case _Body.CALL:
                self._deltas.arguments(text)
            case _Body.REASONING:
                self._deltas.reasoning(self._separator + text)
            case _Body.CONTENT:
                self._deltas.content(self._separator + text)
        if body is not _Body.CALL:
            self._written.add(body)
        self._separator = ""

    def _close(self) -> None:
        if self._body is _Body.CALL:
            self._deltas.end()
        self._body = None

    def finish(self) -> None:
        if not any(piece.is_marker for piece in self._header):
            for piece in self._header:
                self._deltas.content(piece.shown)
        self._header = []
        self._close()
