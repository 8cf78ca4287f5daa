"""What `tokenrelay load` asks and when: Poisson arrivals, prompts and answer lengths, all drawn from one seed.

The whole schedule is known before the first request goes out, so that a slow system can't slow its own load down.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tokenrelay.shared.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

MOST_RATE: Final = 2000.0
MOST_DURATION_S: Final = 86_400.0
MOST_ARRIVALS: Final = 1_000_000
_OPENINGS: Final = ("What is the weather today?", "Will it rain in Paris tomorrow?", "Is it warm in Rome?")
_WORDS: Final = (
    "The sky over the harbour was clear in the morning , then clouds came in from the sea and it rained until noon . "
    "In the evening the wind was light and warm , and people sat outside . Tomorrow it may snow in the mountains ."
).split()


@dataclass(frozen=True, slots=True)
class Range:
    """Two bounds, both included. Lengths between them are drawn log-uniformly: many short ones, a few long ones."""

    low: int
    high: int

    @classmethod
    def parse(cls, name: str, given: str) -> Range:
        """`8:64` or `32`. Raises RequestError that names the option."""
        low, colon, high = given.partition(":")
        if not low.isdecimal() or (colon and not high.isdecimal()):
            raise RequestError(f"{name}: {given!r} is no range; give LOW:HIGH such as 8:64, or one number", field=name)
        found = cls(int(low), int(high if colon else low))
        if not 1 <= found.low <= found.high:
            raise RequestError(f"{name}: {given} is empty or below 1; give LOW:HIGH with 1 ≤ LOW ≤ HIGH", field=name)
        return found

    def draw(self, rng: random.Random) -> int:
        exponent = rng.uniform(math.log(self.low), math.log(self.high + 1))
        return min(self.high, int(math.exp(exponent) + 1e-9))


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request: what it asks, and when it's to be submitted, in seconds from the start."""

    at_s: float
    prompt: str
    max_new_tokens: int
    seed: int


@dataclass(frozen=True, slots=True)
class Workload:
    """What was asked for. `prompts` are drawn from; where there are none, words are strung to `prompt_tokens`."""

    rate: float
    duration_s: float
    max_new_tokens: Range
    prompt_tokens: Range
    prompts: Sequence[str]
    seed: int

    def __post_init__(self) -> None:
        for name, value, most in (("--rate", self.rate, MOST_RATE), ("--duration", self.duration_s, MOST_DURATION_S)):
            if not 0 < value <= most:
                raise RequestError(
                    f"{name}: {value:g} is out of bounds; give more than 0, at most {most:g}", field=name
                )
        if self.rate * self.duration_s > MOST_ARRIVALS:
            told = f"--rate × --duration: {self.rate * self.duration_s:,.0f} requests, at most {MOST_ARRIVALS:,} may be"
            raise RequestError(told, field="--duration", limit=MOST_ARRIVALS)

    def arrivals(self) -> list[Arrival]:
        """All of them, in order. Gaps are exponential, so that they come as those of many independent users do."""
        rng, at_s, found = random.Random(self.seed), 0.0, list[Arrival]()
        while (at_s := at_s + rng.expovariate(self.rate)) < self.duration_s:
            prompt = rng.choice(self.prompts) if self.prompts else _prompt(rng, self.prompt_tokens.draw(rng))
            found.append(Arrival(at_s, prompt, self.max_new_tokens.draw(rng), rng.getrandbits(32)))
        return found


def prompts_of(file: Path) -> list[str]:
    """The file's lines, blank ones left out. Raises RequestError."""
    try:
        found = [line for line in file.read_text("utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"--prompts: {error}", field="--prompts") from None
    if not found:
        raise RequestError(f"--prompts: {file} holds no prompt; give one a line", field="--prompts")
    return found


def _prompt(rng: random.Random, words: int) -> str:
    """So many words and marks: what the bundled model's tokenizer makes one token each of, and others about that."""
    opening = rng.choice(_OPENINGS).replace("?", " ?").split()
    begin = rng.randrange(len(_WORDS))
    filler = [_WORDS[(begin + number) % len(_WORDS)] for number in range(max(0, words - len(opening)))]
    return " ".join([*filler, *opening][-words:])
