"""An answer's tokens as pieces of text and markers.

A marker that is a special token of the model counts only as that token: the same characters, written with other tokens,
are text. One that isn't is found in the text, across tokens.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


@dataclass(frozen=True, slots=True)
class Piece:
    """Text, or a marker. `token`: the index of the token in which it begins."""

    text: str
    token: int
    is_marker: bool = False
    special: bool = False

    @property
    def shown(self) -> str:
        """What it is where it isn't a marker: special tokens are no text."""
        return "" if self.special else self.text

    def marks(self, marker: str) -> bool:
        return self.is_marker and self.text == marker

    def behind(self, chars: int) -> Piece:
        """The text without its first characters."""
        return Piece(self.text[chars:], self.token)


class Lexer:
    """Cuts an answer's text at `markers`, wherever its tokens end. `specials`: token ID → marker."""

    def __init__(self, markers: Iterable[str], specials: Mapping[int, str]) -> None:
        wanted = set(markers)
        self._specials = {token_id: text for token_id, text in specials.items() if text in wanted}
        self._others = dict(specials)
        in_text = sorted(wanted - set(self._specials.values()), key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, in_text))) if in_text else None
        self._begins = {marker[:length] for marker in in_text for length in range(1, len(marker))}
        self._longest = max(map(len, self._begins), default=0)
        self._held = ""
        self._starts: list[tuple[int, int]] = []  # where in `_held` each token's text begins, and its index

    def push(self, text: str, token: int, token_id: int | None = None) -> list[Piece]:
        """The pieces that are certain now."""
        mark = None if token_id is None else self._others.get(token_id)
        if mark is None or not text.endswith(mark):
            return self._text(text, token)
        pieces = [*self._text(text[: -len(mark)], token), *self.flush()]
        if token_id in self._specials:
            pieces.append(Piece(mark, token, is_marker=True, special=True))
        return pieces

    def flush(self) -> list[Piece]:
        """What is held, when no marker can follow."""
        pieces = self._cut(0, len(self._held))
        self._held, self._starts = "", []
        return pieces

    def _text(self, text: str, token: int) -> list[Piece]:
        if not text:
            return []
        self._starts.append((len(self._held), token))
        self._held += text
        pieces, done = [], 0
        for found in self._pattern.finditer(self._held) if self._pattern else ():
            pieces += self._cut(done, found.start())
            pieces.append(Piece(found.group(), self._token_at(found.start()), is_marker=True))
            done = found.end()
        keep = self._possible_begin(done)
        pieces += self._cut(done, keep)
        token_at = self._token_at(keep) if keep < len(self._held) else token
        later = [(start - keep, each) for start, each in self._starts if start > keep]
        self._held = self._held[keep:]
        self._starts = [(0, token_at), *later] if self._held else []
        return pieces

    def _possible_begin(self, done: int) -> int:
        """Where the longest end of the held text begins that is the beginning of a marker."""
        size = len(self._held)
        for begin in range(max(done, size - self._longest), size):
            if self._held[begin:] in self._begins:
                return begin
        return size

    def _cut(self, begin: int, end: int) -> list[Piece]:
        """The held text from `begin` to `end`, one piece per token."""
        if begin >= end:
            return []
        inner = [start for start, _ in self._starts if begin < start < end]
        bounds = [begin, *inner, end]
        pairs = zip(bounds, bounds[1:], strict=False)
        return [Piece(self._held[first:last], self._token_at(first)) for first, last in pairs]

    def _token_at(self, offset: int) -> int:
        """The index of the token whose text holds the character at `offset`."""
        return self._starts[bisect_right(self._starts, offset, key=lambda start: start[0]) - 1][1]
