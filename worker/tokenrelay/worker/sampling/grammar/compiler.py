"""Compiling the grammars of one model's requests, under limits, each once."""

from __future__ import annotations

from collections import OrderedDict
from functools import partial
from threading import Lock
from typing import TYPE_CHECKING, Final

import torch

from tokenrelay.worker.sampling.grammar.grammar import GrammarError
from tokenrelay.worker.sampling.grammar.library import bind, compile_grammar
from tokenrelay.worker.sampling.grammar.matcher import CompiledGrammar
from tokenrelay.worker.sampling.grammar.trial import Trial

if TYPE_CHECKING:
    from tokenrelay.worker.sampling.grammar.grammar import Grammar
    from tokenrelay.worker.sampling.grammar.vocabulary import Vocabulary

_KEPT: Final = 64
"""Answers leave lexer states in the grammar that they share: up to 30 MiB in each, at the library's limit."""
_KEPT_CHARS: Final = 4 << 20


class GrammarCompiler:
    """Compiles for one vocabulary. Results are kept, refusals too, the latest used ones up to a limit."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._tokens = bind(vocabulary)
        self._not_first = _beginning_with_blank(vocabulary) if vocabulary.drops_first_blank else None
        self._trial = Trial()
        self._kept: OrderedDict[Grammar, CompiledGrammar | str] = OrderedDict()
        self._lock = Lock()

    def compile(self, grammar: Grammar) -> CompiledGrammar:
        """Raises GrammarError. Takes a second of processor time at most, most of it in another process."""
        with self._lock:
            found = self._kept.pop(grammar, None) or self._compiled(grammar)
            self._kept[grammar] = found
            while len(self._kept) > 1 and self._is_full():
                self._kept.popitem(last=False)
        if isinstance(found, str):
            raise GrammarError(found)
        return found

    def close(self) -> None:
        """End the process that compiles."""
        with self._lock:
            self._trial.close()

    def _compiled(self, grammar: Grammar) -> CompiledGrammar | str:
        """The reason, where it can't be."""
        try:
            self._trial.compile(grammar)
            return CompiledGrammar(partial(compile_grammar, self._tokens, grammar), self._not_first)
        except GrammarError as error:
            return error.reason

    def _is_full(self) -> bool:
        return len(self._kept) > _KEPT or sum(len(each.text) for each in self._kept) > _KEPT_CHARS


def _beginning_with_blank(vocabulary: Vocabulary) -> torch.Tensor:
    bits = torch.zeros(-(-len(vocabulary.tokens) // 32), dtype=torch.int64)
    for token_id, written in enumerate(vocabulary.tokens):
        if written.startswith(b" "):
            bits[token_id // 32] |= 1 << token_id % 32
    return bits.to(torch.int32)  # wraps around, so the highest bit is the sign
