"""The two libraries of `benchmarks.grammars` behind one interface. Neither needs to be installed for the other."""

from __future__ import annotations

import json
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from transformers import PreTrainedTokenizerBase


class Matcher(Protocol):
    """The state of one answer."""

    def mask(self) -> np.ndarray[Any, Any]:
        """The tokens that may follow: 32 to an int32, the lowest bit first."""

    def accept(self, token: int) -> bool:
        """Whether the token was possible."""


class Library(Protocol):
    """A compiler of grammars for one tokenizer."""

    version: str

    def compile(self, kind: str, text: str) -> Callable[[], Matcher]:
        """What makes a matcher at the grammar's begin. Raises any exception where the grammar isn't supported."""


class _Guidance:
    def __init__(self, tokenizer: PreTrainedTokenizerBase, vocabulary: int) -> None:
        import llguidance.hf

        self.version = version("llguidance")
        self._tokenizer = llguidance.hf.from_tokenizer(tokenizer, n_vocab=vocabulary)  # type: ignore[arg-type]

    def compile(self, kind: str, text: str) -> Callable[[], Matcher]:
        from llguidance import LLMatcher, grammar_from

        if kind == "json_schema":
            grammar = LLMatcher.grammar_from_json_schema(text, overrides={"whitespace_flexible": False})
        else:
            grammar = grammar_from(kind, text)  # type: ignore[arg-type]
        root = LLMatcher(self._tokenizer, grammar, log_level=0)
        if root.is_error():
            raise ValueError(root.get_error())
        return lambda: _GuidanceMatcher(root.deep_copy())


class _GuidanceMatcher:
    def __init__(self, matcher: Any) -> None:
        self._matcher = matcher

    def mask(self) -> np.ndarray[Any, Any]:
        import numpy as np

        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.int32)
        if self._matcher.is_error():
            raise RuntimeError(self._matcher.get_error())
        return bits

    def accept(self, token: int) -> bool:
        return bool(self._matcher.consume_token(token))


class _XGrammar:
    def __init__(self, tokenizer: PreTrainedTokenizerBase, vocabulary: int) -> None:
        import xgrammar

        self.version = version("xgrammar")
        info = xgrammar.TokenizerInfo.from_huggingface(tokenizer, vocab_size=vocabulary)
        # One thread: the other library has one as well, and a worker's cores belong to the model.
        self._compiler = xgrammar.GrammarCompiler(info, max_threads=1, cache_enabled=False)
        self._words = info.vocab_size

    def compile(self, kind: str, text: str) -> Callable[[], Matcher]:
        import xgrammar

        compiler = self._compiler
        if kind == "json_schema":
            compiled = compiler.compile_json_schema(
                text, any_whitespace=False, separators=(",", ":"), strict_mode=False
            )
        elif kind == "regex":
            compiled = compiler.compile_regex(text)
        elif kind == "choice":
            compiled = compiler.compile_lark("start: " + " | ".join(map(json.dumps, json.loads(text))))
        else:
            compiled = compiler.compile_lark(text)
        return lambda: _XGrammarMatcher(xgrammar.GrammarMatcher(compiled), self._words)


class _XGrammarMatcher:
    def __init__(self, matcher: Any, words: int) -> None:
        import xgrammar

        self._matcher, self._bits = matcher, xgrammar.allocate_token_bitmask(1, words)

    def mask(self) -> np.ndarray[Any, Any]:
        self._bits.fill_(-1)  # left as it is where every token may follow
        self._matcher.fill_next_token_bitmask(self._bits)
        bits: np.ndarray[Any, Any] = self._bits[0].numpy()
        return bits

    def accept(self, token: int) -> bool:
        return bool(self._matcher.accept_token(token))


LIBRARIES: Final[dict[str, Callable[[PreTrainedTokenizerBase, int], Library]]] = {
    "llguidance": _Guidance,
    "xgrammar": _XGrammar,
}
