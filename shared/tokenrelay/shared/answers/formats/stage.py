"""What the parsers of all formats share: pieces that are read one by one, and some of them once more."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tokenrelay.shared.answers.deltas import Deltas
    from tokenrelay.shared.answers.lexer import Piece


class Stage(ABC):
    """Reads an answer's pieces, and writes what they say to `deltas`."""

    def __init__(self, deltas: Deltas) -> None:
        self._deltas = deltas
        self._queue: deque[Piece] = deque()

    def push(self, piece: Piece) -> None:
        self._queue.append(piece)
        self._run()

    @property
    def reasons(self) -> bool:
        """Whether the next text is reasoning."""
        return False

    def _run(self) -> None:
        while self._queue:
            self._read(self._queue.popleft())

    def _again(self, pieces: Iterable[Piece]) -> None:
        """Read these before any other."""
        self._queue.extendleft(reversed(list(pieces)))

    @abstractmethod
    def _read(self, piece: Piece) -> None: ...

    @abstractmethod
    def finish(self) -> None:
        """The answer has ended."""


class PlainText(Stage):
    """An answer without tool calls."""

    def _read(self, piece: Piece) -> None:
        self._deltas.content(piece.shown)

    def finish(self) -> None:
        pass
