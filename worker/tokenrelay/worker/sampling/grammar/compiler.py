"""Compiling the grammars of one model's requests: each once, under limits, in threads of its own."""

from __future__ import annotations

import os
import sys
import threading
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from queue import LifoQueue
from typing import TYPE_CHECKING, Any, Final, cast
from weakref import ref

import torch

from tokenrelay.shared.errors import EngineError
from tokenrelay.worker.sampling.grammar.grammar import GrammarError
from tokenrelay.worker.sampling.grammar.library import bind, compile_grammar, free
from tokenrelay.worker.sampling.grammar.matcher import CompiledGrammar
from tokenrelay.worker.sampling.grammar.trial import Trial

if TYPE_CHECKING:
    from collections.abc import Callable

    from tokenrelay.worker.sampling.grammar.grammar import Grammar
    from tokenrelay.worker.sampling.grammar.library import Matcher
    from tokenrelay.worker.sampling.grammar.vocabulary import Vocabulary

PARALLEL: Final = 2
"""Grammars that are compiled at a time."""
MOST_WAITING: Final = 16
"""Grammars that are compiled or wait for it."""
_KEPT: Final = 64
"""Answers leave lexer states in the grammar that they share: up to 30 MiB in each, at the library's limit."""
_KEPT_CHARS: Final = 4 << 20
_NICENESS: Final = 10
"""The model's steps come first."""


@dataclass(eq=False, slots=True)
class Compilation:
    """A grammar that is tried in another process, and then, once `proceed` is called, compiled in this one."""

    trial: Future[str | GrammarError]
    """Its source, or the reason why it can't be compiled. Its exception: EngineError, where there was no process to try
    it in."""
    begin: Callable[[str], Future[CompiledGrammar | GrammarError]]
    compiled: Future[CompiledGrammar | GrammarError] | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def stage(self) -> Future[Any]:
        """The work that was begun last."""
        return self.compiled or self.trial

    @property
    def failed(self) -> bool:
        """Whether there was no process to try it in."""
        return self.trial.done() and self.trial.exception() is not None

    @property
    def is_tried(self) -> bool:
        """Whether it can be compiled in this process, or is."""
        return self.trial.done() and not self.failed and isinstance(self.trial.result(), str)

    def done(self) -> bool:
        return self.stage.done() and (self.compiled is not None or not self.is_tried)

    def proceed(self) -> None:
        """Compile in this process what was tried, unless that was begun."""
        with self._lock:
            if self.is_tried and self.compiled is None:
                self.compiled = self.begin(cast("str", self.trial.result()))


class GrammarCompiler:
    """Compiles for one vocabulary. The latest used results are kept, refusals too, up to `kept`."""

    def __init__(self, vocabulary: Vocabulary, *, kept: int = _KEPT, trial: Callable[[], Trial] = Trial) -> None:
        self._tokens = bind(vocabulary)
        self._not_first = _beginning_with_blank(vocabulary) if vocabulary.drops_first_blank else None
        self._most_kept = kept
        self._kept: OrderedDict[Grammar, Compilation] = OrderedDict()
        self._made: list[tuple[ref[CompiledGrammar], Matcher]] = []
        self._trials = [trial() for _ in range(PARALLEL)]
        self._idle: LifoQueue[Trial] = LifoQueue()  # a second process is started where one isn't enough
        for each in self._trials:
            self._idle.put(each)
        self._trying = ThreadPoolExecutor(PARALLEL, "grammar trial", _yield_to_steps)
        self._compiling = ThreadPoolExecutor(PARALLEL, "grammar", _yield_to_steps)
        self._lock = threading.Lock()

    def begin(self, grammar: Grammar) -> Compilation:
        """Try in another process what isn't kept. Raises EngineError where too many wait for that."""
        with self._lock:
            found = self._kept.pop(grammar, None)
            if found is None or found.failed:
                if sum(not each.stage.done() for each in self._kept.values()) >= MOST_WAITING:
                    raise EngineError(f"{MOST_WAITING} grammars wait to be compiled")
                trial = self._trying.submit(self._try, grammar)
                found = Compilation(trial, lambda source: self._compiling.submit(self._compile, grammar, source))
            self._kept[grammar] = found
            self._drop_oldest()
        return found

    def compile(self, grammar: Grammar) -> CompiledGrammar:
        """Wait for the grammar. Raises GrammarError, EngineError. Takes a second of processor time at most in another
        process, and as long again in this one."""
        return outcome(self.begin(grammar))

    def close(self) -> None:
        """End threads and processes."""
        for threads in (self._trying, self._compiling):
            threads.shutdown(wait=False, cancel_futures=True)
        self._close_trials()  # which ends what is being compiled
        for threads in (self._trying, self._compiling):
            threads.shutdown()
        self._close_trials()

    def _close_trials(self) -> None:
        for each in self._trials:
            each.close()

    def _try(self, grammar: Grammar) -> str | GrammarError:
        """The source as the library compiles it; the reason, where it can't be compiled."""
        trial = self._idle.get()
        try:
            return trial.compile(grammar)
        except GrammarError as error:
            return GrammarError(error.reason, grammar.field)
        finally:
            self._idle.put(trial)

    def _compile(self, grammar: Grammar, source: str) -> CompiledGrammar | GrammarError:
        """The reason, where it can't be."""
        try:
            compiled = CompiledGrammar(partial(compile_grammar, self._tokens, source, grammar.kind), self._not_first)
        except GrammarError as error:
            return GrammarError(error.reason, grammar.field)
        self._free_unused((ref(compiled), compiled.root))
        return compiled

    def _free_unused(self, made: tuple[ref[CompiledGrammar], Matcher]) -> None:
        """Free the grammars that are neither kept nor used by an answer."""
        with self._lock:
            unused = [matcher for compiled, matcher in self._made if compiled() is None]
            self._made = [made, *(each for each in self._made if each[0]() is not None)]
        for matcher in unused:
            free(matcher)

    def _drop_oldest(self) -> None:
        done = [(grammar, len(grammar.text)) for grammar, each in self._kept.items() if each.stage.done()]
        chars = sum(size for _, size in done)
        for grammar, size in done[:-1]:
            if len(self._kept) <= self._most_kept and chars <= _KEPT_CHARS:
                return
            chars -= size
            del self._kept[grammar]


def outcome(compilation: Compilation) -> CompiledGrammar:
    """What was compiled, once it is: waits for it. Raises GrammarError, EngineError."""
    compilation.trial.result()
    compilation.proceed()
    found = compilation.stage.result()
    if isinstance(found, GrammarError):
        raise GrammarError(found.reason, found.field or "")
    return cast("CompiledGrammar", found)


def _yield_to_steps() -> None:
    """Give this thread a low priority, where a thread has one of its own."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)


def _beginning_with_blank(vocabulary: Vocabulary) -> torch.Tensor:
    bits = torch.zeros(-(-len(vocabulary.tokens) // 32), dtype=torch.int64)
    for token_id, written in enumerate(vocabulary.tokens):
        if written.startswith(b" "):
            bits[token_id // 32] |= 1 << token_id % 32
    return bits.to(torch.int32)  # wraps around, so the highest bit is the sign
