"""The tokens that may follow an answer under a grammar.

A grammar's state is derived: it can be computed from the answer's token IDs alone, so whoever has them can continue the
answer. What is kept from one token to the next is a cache.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import torch

from tokenrelay.worker.sampling.grammar.library import is_full

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tokenrelay.worker.sampling.grammar.library import Matcher

_WORD: Final = torch.int32


@dataclass(slots=True, weakref_slot=True)
class CompiledGrammar:
    """A grammar for one vocabulary. Any number of answers may be under it, in any thread."""

    compile: Callable[[], Matcher]
    """Makes a matcher at the begin of an answer, which shares nothing with another."""
    not_first: torch.Tensor | None = None
    """Tokens that can't begin an answer, as a bitmask."""
    root: Matcher = field(init=False)
    """Only copied. Its copies share the lexer's states, which gather over the answers up to the library's limit."""

    def __post_init__(self) -> None:
        self.root = self.compile()

    def renew(self) -> None:
        """Begin with no lexer states again."""
        self.root = self.compile()


@dataclass(slots=True)
class AnswerMask:
    """The `TokenMask` of one answer; for one thread at a time."""

    grammar: CompiledGrammar
    consumed: list[int] = field(default_factory=list)
    """The tokens behind which the kept matcher stands."""
    _root: Matcher | None = None
    """What the matcher is a copy of."""
    _matcher: Matcher | None = None

    def __call__(self, emitted_ids: Sequence[int]) -> torch.Tensor:
        """(ceil(vocabulary / 32),), int32: bit i of word w is set where token 32 w + i may follow `emitted_ids`.

        Where the answer is complete, only the end-of-sequence tokens; all 0 where nothing can follow, be it that the
        tokens aren't in the grammar, or that the library's limits for a token are reached.
        """
        matcher, bits = self._mask(emitted_ids)
        # What other answers have left of the lexer's states decides nothing.
        if is_full(matcher) and self.grammar.root is not self._root:
            matcher, bits = self._mask(emitted_ids, anew=True)
        if is_full(matcher):
            self.grammar.renew()
            matcher, bits = self._mask(emitted_ids, anew=True)
        if matcher.is_error():
            return torch.zeros_like(bits)
        if not emitted_ids and self.grammar.not_first is not None:
            bits &= ~self.grammar.not_first
        return bits

    def _mask(self, emitted_ids: Sequence[int], *, anew: bool = False) -> tuple[Matcher, torch.Tensor]:
        if anew:
            self._matcher = None
        matcher = self._at(emitted_ids)
        return matcher, torch.frombuffer(bytearray(matcher.compute_bitmask()), dtype=_WORD)

    def _at(self, emitted_ids: Sequence[int]) -> Matcher:
        """The matcher behind `emitted_ids`: moved on where it stands at a part of them, else made again by a replay."""
        kept = len(self.consumed)
        if self._matcher is None or kept > len(emitted_ids) or self.consumed != list(emitted_ids[:kept]):
            self._root = self.grammar.root
            self._matcher, kept = self._root.deep_copy(), 0
        # One by one: a call keeps the interpreter from all other threads, and an ambiguous grammar takes milliseconds
        # for each token.
        for token_id in emitted_ids[kept:]:
            if not self._matcher.consume_token(token_id):
                break
        self.consumed = list(emitted_ids)
        return self._matcher
