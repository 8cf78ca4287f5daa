"""From tokens to the text that may be published: the detokenizer, then the stop strings."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tokenrelay.worker.text.detokenizer import Detokenizer
from tokenrelay.worker.text.logprobs import encode_logprobs
from tokenrelay.worker.text.stops import StopMatcher

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class TextRelease:
    """What one token releases, and whether a stop string or a stop token ended the answer with it."""

    text: str
    stopped: bool


@dataclass(frozen=True, slots=True)
class EndRules:
    """What ends an answer, besides the model and the budget."""

    stop: tuple[str, ...] = ()
    include: bool = False
    """Whether the stop string that ends the answer is a part of it."""
    last_tokens: frozenset[int] = frozenset()
    """Each of these tokens ends the answer, and is a part of it."""
    min_tokens: int = 0
    """No stop string counts in the text of these first tokens; the draw keeps stop tokens from being drawn."""
    marks: Mapping[int, str] = field(default_factory=dict)
    """Special tokens that are text here, for those who parse it: vocabulary ID → text."""


class TokenText:
    """The text side of one request. It depends on the tokens alone, so a resume rebuilds it by `replay`."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, rules: EndRules, token_bytes: Callable[[int], bytes] | None = None
    ) -> None:
        """`token_bytes`: what a token writes, for `logprobs`."""
        self._rules = rules
        self._token_bytes = token_bytes or (lambda token_id: str(tokenizer.decode([token_id])).encode())
        self._detokenizer = Detokenizer(tokenizer)
        self._stops = StopMatcher(rules.stop, include=rules.include)
        self._tokens = 0

    @property
    def stopped(self) -> bool:
        """Whether a stop string ended the answer, be it in `flush`."""
        return self._stops.stopped

    @property
    def last_tokens(self) -> frozenset[int]:
        """Tokens that end the answer, and are a part of it."""
        return self._rules.last_tokens

    def push(self, token_id: int) -> TextRelease:
        """The text that this token releases; empty after a stop string."""
        self._tokens += 1
        if token_id in self._rules.marks:
            return self._mark(self._rules.marks[token_id])
        text = self._detokenizer.push(token_id)
        if self._tokens > self._rules.min_tokens:
            text, stopped = self._stops.push(text)
        else:
            stopped = False
        if token_id in self._rules.last_tokens and not stopped:
            return TextRelease(text + self.flush(), stopped=True)
        return TextRelease(text, stopped)

    def _mark(self, mark: str) -> TextRelease:
        """What is held, and the mark behind it: no character and no stop string goes on through a special token."""
        text = self.flush()
        return TextRelease(text if self.stopped else text + mark, self.stopped)

    def logprobs(self, logprobs: Iterable[tuple[int, float]]) -> bytes:
        """A token's log-probabilities as the stream holds them."""
        return encode_logprobs(logprobs, self._token_bytes)

    def prompt_logprobs(self, logprobs: Iterable[Iterable[tuple[int, float]]]) -> bytes:
        """The same of a prompt's tokens but the first, which has none."""
        return b"[%b]" % b",".join((b"null", *map(self.logprobs, logprobs)))

    def flush(self) -> str:
        """The held text, when no more tokens come."""
        text, _ = self._stops.push(self._detokenizer.flush())
        return text + self._stops.flush()

    def replay(self, token_ids: Iterable[int]) -> list[TextRelease]:
        """Push the tokens that earlier attempts emitted; what they release must equal what the stream holds."""
        return [self.push(token_id) for token_id in token_ids]
