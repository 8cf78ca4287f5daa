"""The load: waves of concurrent requests with prompts of an exact length, and their results."""

from __future__ import annotations

import random
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

WORDS: Final = (
    "rain sun wind cloud storm river mountain morning evening city garden winter summer window letter stone "
    "paper bread water road bridge music color table number question answer story market engine harbor forest"
).split()


@dataclass(frozen=True, slots=True)
class Wave:
    """Requests submitted at the same time. `temperature` 0 is greedy."""

    prompts: tuple[str, ...]
    new_tokens: int
    temperature: float
    seed: int
    asked: tuple[dict[str, Any], ...] = ()
    """Further options of each request; empty: none of any."""

    def message(self) -> dict[str, Any]:
        return {
            "prompts": self.prompts,
            "new_tokens": self.new_tokens,
            "temperature": self.temperature,
            "seed": self.seed,
            "asked": self.asked,
        }

    @classmethod
    def of(cls, message: dict[str, Any]) -> Wave:
        return cls(
            tuple(message["prompts"]),
            message["new_tokens"],
            message["temperature"],
            message["seed"],
            tuple(message["asked"]),
        )


@dataclass(frozen=True, slots=True)
class Outcome:
    """`seconds` from the first submit to the last token; `first_token_s` of each request; `cpu_s` if it was metered."""

    tokens: int
    seconds: float
    first_token_s: tuple[float, ...]
    cpu_s: float = 0.0

    @property
    def rate(self) -> float:
        return self.tokens / self.seconds

    @property
    def ttft_ms(self) -> float:
        return statistics.median(self.first_token_s) * 1000

    def message(self) -> dict[str, Any]:
        return {"tokens": self.tokens, "seconds": self.seconds, "first_token_s": self.first_token_s}

    @classmethod
    def of(cls, message: dict[str, Any]) -> Outcome:
        return cls(message["tokens"], message["seconds"], tuple(message["first_token_s"]))


def prompt_of(tokenizer: PreTrainedTokenizerBase, tokens: int, seed: int) -> str:
    """A prompt of exactly so many tokens, different for each seed. Raises ValueError if none was found."""
    draw = random.Random(seed)
    words = [draw.choice(WORDS) for _ in range(tokens // 2)]
    for _ in range(50 * tokens):
        length = _count(tokenizer, words)
        if length == tokens:
            return " ".join(words)
        words = words[: -max(1, length - tokens)] if length > tokens else [*words, draw.choice(WORDS)]
    raise ValueError(f"no prompt of exactly {tokens} tokens was found")


def _count(tokenizer: PreTrainedTokenizerBase, words: list[str]) -> int:
    return len(tokenizer(" ".join(words))["input_ids"]) if words else 0
