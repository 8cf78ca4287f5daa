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
    """Turns in order, with an optional system message before them; `source` says where it stands, for errors."""

    turns: tuple[Turn, ...]
    system: str | None = None
    source: str = "the bundled corpus"

    @property
    def questions(self) -> tuple[str, ...]:
        return tuple(turn.question for turn in self.turns)


@dataclass(frozen=True, slots=True)
class Corpus:
    """What is learnt from, and what is held out to measure how well."""

    train: tuple[Conversation, ...]
    held_out: tuple[Conversation, ...]
