"""A conversation to learn from, and the two parts that a set of them is split into.

Knows nothing of tokens, files or where conversations come from.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Turn:
    """One question and the answer to it."""

    question: str
    answer: str


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns in order, with an optional system message before them; `source` is its place, for error messages."""

    turns: tuple[Turn, ...]
    system: str | None = None
    source: str = "the bundled corpus"

    @property
    def questions(self) -> tuple[str, ...]:
        return tuple(turn.question for turn in self.turns)


@dataclass(frozen=True, slots=True)
class Corpus:
    """The conversations for training, and those held out for evaluation."""

    train: tuple[Conversation, ...]
    held_out: tuple[Conversation, ...]
