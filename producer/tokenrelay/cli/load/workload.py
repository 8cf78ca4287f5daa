"""The workload of `tokenrelay load`: Poisson arrivals, prompts and answer lengths, drawn from one seed.

The whole schedule is computed before the first request, so a slow system can't reduce its own load.
"""

from __future__ import annotations

import math
import random
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tokenrelay.shared.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

MAX_RATE: Final = 2000.0
MAX_DURATION_S: Final = 86_400.0
MAX_ARRIVALS: Final = 1_000_000
_OPENINGS: Final = ("What is the weather today?", "Will it rain in Paris tomorrow?", "Is it warm in Rome?")
_TEXT: Final = (
    " In spring the days grow longer and the flowers open. In summer it is warm and the evenings are bright."
    " In autumn the leaves turn red and the wind gets stronger."
    " In winter the nights are long and snow covers the fields."
)
_PIECE: Final = re.compile(r" \w+|[.?]")
_FILLER: Final = _PIECE.findall(_TEXT)


@dataclass(frozen=True, slots=True)
class Range:
    """Inclusive bounds. Lengths are drawn log-uniformly: many short ones, few long ones."""

    low: int
    high: int

    @classmethod
    def parse(cls, name: str, given: str) -> Range:
        """Parse `8:64` or `32`. Raises RequestError that names the option."""
        low, colon, high = given.partition(":")
        if not low.isdecimal() or (colon and not high.isdecimal()):
            raise RequestError(
                f"{name}: {given!r} isn't a range; give LOW:HIGH such as 8:64, or one number", field=name
            )
        found = cls(int(low), int(high if colon else low))
        if not 1 <= found.low <= found.high:
            raise RequestError(f"{name}: {given} is empty or below 1; give LOW:HIGH with 1 ≤ LOW ≤ HIGH", field=name)
        return found

    def draw(self, rng: random.Random) -> int:
        exponent = rng.uniform(math.log(self.low), math.log(self.high + 1))
        return min(self.high, int(math.exp(exponent) + 1e-9))


@dataclass(frozen=True, slots=True)
class Arrival:
    """One scheduled request. `at_s`: seconds from the start."""

    at_s: float
    prompt: str
    max_new_tokens: int
    seed: int


@dataclass(frozen=True, slots=True)
class Workload:
    """The workload's parameters. Prompts are drawn from `prompts`, or generated with `prompt_tokens` words if empty."""

    rate: float
    duration_s: float
    max_new_tokens: Range
    prompt_tokens: Range
    prompts: Sequence[str]
    seed: int

    def __post_init__(self) -> None:
        for name, value, most in (("--rate", self.rate, MAX_RATE), ("--duration", self.duration_s, MAX_DURATION_S)):
            if not 0 < value <= most:
                raise RequestError(
                    f"{name}: {value:g} is out of bounds; give more than 0, at most {most:g}", field=name
                )
        if self.rate * self.duration_s > MAX_ARRIVALS:
            message = f"--rate × --duration: {self.rate * self.duration_s:,.0f} requests; the limit is {MAX_ARRIVALS:,}"
            raise RequestError(message, field="--duration", limit=MAX_ARRIVALS)

    def arrivals(self) -> list[Arrival]:
        """All arrivals in order, with exponential gaps, as from many independent users."""
        rng, at_s, found = random.Random(self.seed), 0.0, list[Arrival]()
        while (at_s := at_s + rng.expovariate(self.rate)) < self.duration_s:
            prompt = rng.choice(self.prompts) if self.prompts else _prompt(rng, self.prompt_tokens.draw(rng))
            found.append(Arrival(at_s, prompt, self.max_new_tokens.draw(rng), rng.getrandbits(32)))
        return found


def read_prompts(file: Path) -> list[str]:
    """The file's non-blank lines. Raises RequestError."""
    try:
        found = [line for line in file.read_text("utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"--prompts: {error}", field="--prompts") from None
    if not found:
        raise RequestError(f"--prompts: {file} has no prompts; give one per line", field="--prompts")
    return found


def _prompt(rng: random.Random, words: int) -> str:
    """A prompt of `words` words and punctuation marks. The bundled model's tokenizer makes one token of each, and a few
    of a word that isn't where its corpus has it: first in a text, or after another one."""
    opening = _PIECE.findall(f" {rng.choice(_OPENINGS)}")
    begin = rng.randrange(len(_FILLER))
    filler = [_FILLER[(begin + number) % len(_FILLER)] for number in range(max(0, words - len(opening)))]
    return "".join([*filler, *opening][-words:]).lstrip()
