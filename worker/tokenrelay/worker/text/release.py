"""From tokens to the text that may be published: the detokenizer, then the stop strings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tokenrelay.worker.text.detokenizer import Detokenizer
from tokenrelay.worker.text.stops import StopMatcher

if TYPE_CHECKING:
    from collections.abc import Iterable

    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class TextRelease:
    """What one token releases, and whether a stop string ended the answer with it."""

    text: str
    stopped: bool


class TokenText:
    """The text side of one request. It depends on the tokens alone, so a resume rebuilds it by `replay`."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: tuple[str, ...]) -> None:
        self._detokenizer = Detokenizer(tokenizer)
        self._stops = StopMatcher(stop)

    @property
    def stopped(self) -> bool:
        """Whether a stop string ended the answer, be it in `flush`."""
        return self._stops.stopped

    def push(self, token_id: int) -> TextRelease:
        """The text that this token releases; empty after a stop string."""
        return TextRelease(*self._stops.push(self._detokenizer.push(token_id)))

    def flush(self) -> str:
        """The held text, when no more tokens come."""
        text, _ = self._stops.push(self._detokenizer.flush())
        return text + self._stops.flush()

    def replay(self, token_ids: Iterable[int]) -> list[TextRelease]:
        """Push the tokens that earlier attempts emitted; what they release must equal what the stream holds."""
        return [self.push(token_id) for token_id in token_ids]
