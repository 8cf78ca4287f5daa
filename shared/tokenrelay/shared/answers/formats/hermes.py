"""Calls as Hermes and Qwen models write them: `<tool_call>{"name": …, "arguments": …}</tool_call>`, among text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tokenrelay.shared.answers.formats.call_json import OpenCall
from tokenrelay.shared.answers.formats.stage import Stage

if TYPE_CHECKING:
    from tokenrelay.shared.answers.deltas import Deltas
    from tokenrelay.shared.answers.lexer import Piece

BEGIN: Final = "<tool_call>"
END: Final = "</tool_call>"


class Hermes(Stage):
    """A block that isn't a call is text, its markers included. A marker within a JSON string is a part of it."""

    def __init__(self, deltas: Deltas) -> None:
        super().__init__(deltas)
        self._call: OpenCall | None = None
        self._block: list[Piece] = []  # the pieces of a call that hasn't begun for readers
        self._ended = False  # a call has, and its closing marker may follow

    def _read(self, piece: Piece) -> None:
        if self._call is None:
            self._outside(piece)
        elif piece.is_marker and (piece.special or not self._call.in_string):
            self._leave(self._call, piece)
        else:
            self._inside(self._call, piece)

    def _outside(self, piece: Piece) -> None:
        if piece.marks(BEGIN):
            self._call, self._block, self._ended = OpenCall(self._deltas, piece.token), [piece], False
        elif piece.marks(END) and self._ended:
            self._ended = False
        else:
            self._ended = self._ended and not piece.shown.strip()
            self._deltas.content(piece.shown)

    def _inside(self, call: OpenCall, piece: Piece) -> None:
        if not call.begun:
            self._block.append(piece)
        read = call.push(piece.shown)
        if call.broken:
            call.append(piece.shown[read:])
        elif call.begun and (call.complete or call.failed):
            self._end()
            self._again([piece.behind(read)])
        elif call.failed:
            self._unread()

    def _leave(self, call: OpenCall, marker: Piece) -> None:
        """A marker comes within the call."""
        if call.begun:
            self._end()
            self._again([marker])
        else:
            self._unread(marker)

    def _end(self) -> None:
        self._deltas.end()
        self._call, self._block, self._ended = None, [], True

    def _unread(self, *more: Piece) -> None:
        """The block is no call: its first marker is text, and the rest is read once more."""
        marker, *rest = self._block
        self._call, self._block = None, []
        self._deltas.content(marker.shown)
        self._again([*rest, *more])

    def finish(self) -> None:
        while self._call is not None:
            if self._call.begun:
                self._end()
            else:
                self._unread()
            self._run()
