"""Calls without markers: an answer that begins as a call's JSON is calls, separated by `;` or in an array.

Llama 3's models write them so, also behind `<|python_tag|>`, and any model that is only asked to.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tokenrelay.shared.answers.formats.call_json import OpenCall
from tokenrelay.shared.answers.formats.stage import Stage

if TYPE_CHECKING:
    from tokenrelay.shared.answers.deltas import Deltas
    from tokenrelay.shared.answers.lexer import Piece

PYTHON_TAG: Final = "<|python_tag|>"
_BLANK: Final = " \t\n\r"
_BEFORE_FIRST: Final = _BLANK + "["
_BETWEEN: Final = _BLANK + ";,]"


class BareJson(Stage):
    """What doesn't begin as a call is text, and so is what follows the last call."""

    def __init__(self, deltas: Deltas) -> None:
        super().__init__(deltas)
        self._call: OpenCall | None = None
        self._block: list[Piece] = []  # the pieces of a call that hasn't begun for readers
        self._seeks = True  # a call may begin
        self._has_calls = False

    def _read(self, piece: Piece) -> None:
        if piece.is_marker and (piece.special or not (self._call and self._call.in_string)):
            self._leave()
            self._block, self._seeks, self._has_calls = [piece], True, False
        elif self._call is not None:
            self._inside(self._call, piece)
        elif self._seeks:
            self._seek(piece)
        else:
            self._deltas.content(piece.shown)

    def _seek(self, piece: Piece) -> None:
        text = piece.shown.lstrip(_BETWEEN if self._has_calls else _BEFORE_FIRST)
        if text.startswith("{"):
            self._call = OpenCall(self._deltas, piece.token)
            before = len(piece.shown) - len(text)
            self._block.append(piece)
            self._feed(self._call, piece, before)
        elif text:
            self._seeks = False
            if self._has_calls:
                self._deltas.content(text)
            else:
                self._block.append(piece)
                self._unread()
        elif not self._has_calls:
            self._block.append(piece)

    def _inside(self, call: OpenCall, piece: Piece) -> None:
        if not call.begun:
            self._block.append(piece)
        self._feed(call, piece, 0)

    def _feed(self, call: OpenCall, piece: Piece, begin: int) -> None:
        read = begin + call.push(piece.shown[begin:])
        if call.broken:
            call.append(piece.shown[read:])
        elif call.begun and (call.complete or call.failed):
            self._end()
            self._again([piece.behind(read)])
        elif call.failed:
            self._seeks = False
            self._unread()

    def _end(self) -> None:
        self._deltas.end()
        self._call, self._block, self._has_calls = None, [], True

    def _unread(self) -> None:
        block, self._call, self._block = self._block, None, []
        for piece in block:
            self._deltas.content(piece.shown)

    def _leave(self) -> None:
        """Nothing more of the call comes."""
        if self._call is not None and self._call.begun:
            self._end()
        else:
            self._unread()

    def finish(self) -> None:
        self._leave()
