"""Calls as Mistral's models write them, in both forms.

`[TOOL_CALLS][{"name": …, "arguments": …}, …]`, and since version 11 of their tokenizers `[TOOL_CALLS]NAME[ARGS]{…}`
for each call, also without `[ARGS]`, or with `[CALL_ID]ID` before it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tokenrelay.shared.answers.formats.bare_json import BareJson
from tokenrelay.shared.answers.formats.call_json import NAME
from tokenrelay.shared.answers.formats.json_scanner import JsonScanner
from tokenrelay.shared.answers.formats.stage import Stage

if TYPE_CHECKING:
    from tokenrelay.shared.answers.deltas import Deltas
    from tokenrelay.shared.answers.lexer import Piece

TOOL_CALLS: Final = "[TOOL_CALLS]"
ARGS: Final = "[ARGS]"
CALL_ID: Final = "[CALL_ID]"


class Mistral(Stage):
    """A marker that no call follows is text, unless it is a special token."""

    def __init__(self, deltas: Deltas) -> None:
        super().__init__(deltas)
        self._block: list[Piece] = []  # from the marker on, of a call that hasn't begun for readers
        self._name: str | None = None  # what follows the marker; None outside of a call
        self._name_ended = False
        self._array: BareJson | None = None
        self._arguments: JsonScanner | None = None

    def _read(self, piece: Piece) -> None:
        in_string = self._arguments is not None and self._arguments.in_string and not self._arguments.failed
        if piece.marks(TOOL_CALLS) and (piece.special or not (in_string or self._array)):
            self._leave()
            self._name, self._name_ended, self._block = "", False, [piece]
        elif self._array is not None:
            self._array.push(piece)
        elif self._arguments is not None:
            self._read_arguments(self._arguments, piece)
        elif self._name is not None:
            self._block.append(piece)
            self._read_name(self._name, piece)
        else:
            self._deltas.content(piece.shown)

    def _read_name(self, name: str, piece: Piece) -> None:
        if piece.marks(ARGS) or piece.marks(CALL_ID):
            self._name_ended = True
            return
        before, brace, _ = piece.shown.partition("{")
        if not self._name_ended:
            self._name = _begun_name(name + before)
        if not self._name_ended and not name.strip() and piece.shown.lstrip().startswith(("[", "{")):
            self._array = BareJson(self._deltas)
            for each in self._block:
                self._array.push(each)
            self._name, self._block = None, []
        elif brace and NAME.fullmatch((self._name or "").strip()):
            self._deltas.begin((self._name or "").strip(), self._block[0].token)
            self._name, self._block, self._arguments = None, [], JsonScanner()
            self._again([piece.behind(len(before))])
        elif brace or (self._name and not NAME.fullmatch(self._name.strip())):
            self._leave()

    def _read_arguments(self, arguments: JsonScanner, piece: Piece) -> None:
        read = 0
        for char in piece.shown:
            if arguments.failed or arguments.complete:
                break
            arguments.push(char)
            read += not arguments.failed
        if arguments.failed:
            read = len(piece.shown)
        self._deltas.arguments(piece.shown[:read])
        if arguments.complete:
            self._leave()
            self._again([piece.behind(read)])

    def _leave(self) -> None:
        """Nothing more of the call comes."""
        if self._arguments is not None:
            self._deltas.end()
        if self._array is not None:
            self._array.finish()
        for piece in self._block:
            self._deltas.content(piece.shown)
        self._block, self._name, self._array, self._arguments = [], None, None, None

    def finish(self) -> None:
        self._leave()


def _begun_name(text: str) -> str:
    """The text without the blanks before it, and with one at most behind it: a model may write any number."""
    name = text.strip()
    return f"{name} " if name and text[-1].isspace() else name
