"""Reasoning in a block at the start of an answer: `<think>…</think>`, or `[THINK]…[/THINK]`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenrelay.shared.answers.formats.stage import Stage

if TYPE_CHECKING:
    from tokenrelay.shared.answers.deltas import Deltas
    from tokenrelay.shared.answers.lexer import Piece


class Thinking(Stage):
    """Passes what isn't reasoning on to `rest`. An answer that ends within the block is all reasoning."""

    def __init__(self, deltas: Deltas, rest: Stage, markers: tuple[str, str], *, begun: bool = False) -> None:
        """`begun`: the prompt ends with the opening marker."""
        super().__init__(deltas)
        self._rest = rest
        self._begin, self._end = markers
        self._inside = begun
        self._awaited = True  # the block may begin here
        self._blank: list[Piece] = []  # what may stand before it

    @property
    def reasons(self) -> bool:
        return self._inside or self._rest.reasons

    def _read(self, piece: Piece) -> None:
        if self._inside and piece.marks(self._end):
            self._inside = self._awaited = False
        elif self._inside:
            if not (self._awaited and piece.marks(self._begin)):  # some models repeat the prompt's marker
                self._deltas.reasoning(piece.shown)
            self._awaited = self._awaited and not piece.shown.strip()
        elif self._awaited and piece.marks(self._begin):
            self._inside, self._awaited, self._blank = True, False, []
        elif self._awaited and not piece.is_marker and not piece.shown.strip():
            self._blank.append(piece)
        else:
            self._release()
            self._rest.push(piece)

    def _release(self) -> None:
        """No block begins any more."""
        self._awaited = False
        for piece in self._blank:
            self._rest.push(piece)
        self._blank = []

    def finish(self) -> None:
        self._release()
        self._rest.finish()
