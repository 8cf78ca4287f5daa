"""The tokens that may follow an answer under a grammar.

A grammar's state is derived: it can be computed from the answer's token IDs alone, so whoever has them can continue the
answer. What is kept from one token to the next is a cache.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenrelay.worker.sampling.grammar.library import Matcher

_WORD: Final = torch.int32


@dataclass(frozen=True, slots=True)
class CompiledGrammar:
    """A grammar for one vocabulary. Any number of answers may be under it, in any thread."""

    root: Matcher
    """At the begin of an answer. Only copied."""
    not_first: torch.Tensor | None = None
    """Tokens that can't begin an answer, as a bitmask."""


@dataclass(slots=True)
class AnswerMask:
    """The `TokenMask` of one answer; for one thread at a time."""

    grammar: CompiledGrammar
    _matcher: Matcher | None = None
    _consumed: list[int] = field(default_factory=list)

    def __call__(self, emitted_ids: Sequence[int]) -> torch.Tensor:
        """(ceil(vocabulary / 32),), int32: bit i of word w is set where token 32 w + i may follow `emitted_ids`.

        Where the answer is complete, only the end-of-sequence tokens; all 0 where nothing can follow, be it that the
        tokens aren't in the grammar, or that the library's limits for a token are reached.
        """
        matcher = self._at(emitted_ids)
        bits = torch.frombuffer(bytearray(matcher.compute_bitmask()), dtype=_WORD)
        if matcher.is_error():
            return torch.zeros_like(bits)
        if not emitted_ids and self.grammar.not_first is not None:
            bits &= ~self.grammar.not_first
        return bits

    def _at(self, emitted_ids: Sequence[int]) -> Matcher:
        """The matcher behind `emitted_ids`: moved on where it stands at a part of them, else made again by a replay."""
        kept = len(self._consumed)
        if self._matcher is None or kept > len(emitted_ids) or self._consumed != list(emitted_ids[:kept]):
            self._matcher, kept = self.grammar.root.deep_copy(), 0
        new = list(emitted_ids[kept:])
        if new:
            self._matcher.consume_tokens(new)
        self._consumed = list(emitted_ids)
        return self._matcher
