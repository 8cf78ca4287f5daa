"""A model's tokens as bytes. How a tokenizer gives them: see `token_bytes`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """A model's tokens, by ID."""

    tokens: tuple[bytes, ...]
    """Empty for tokens that write nothing: special ones, and IDs of the model that the tokenizer doesn't have."""
    eos_ids: tuple[int, ...]
    drops_first_blank: bool = False
    """Whether the blank that an answer's first token begins with isn't part of its text, as SentencePiece has it."""
