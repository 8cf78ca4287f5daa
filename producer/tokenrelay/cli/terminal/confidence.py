"""Colours of an answer's text on a terminal, by the probability that the model gave each token."""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING, Final

from rich.color import ColorSystem
from rich.console import Console
from rich.style import Style

if TYPE_CHECKING:
    from tokenrelay.shared.wire.entries import Ended, Token

_STEPS: Final = ((0.9, "green"), (0.5, "yellow"), (0.1, "red"), (0.0, "red underline"))
"""Least probability → style. Colours of the terminal's own palette, which is legible on its background; the least
probable are underlined, too, for those who don't tell colours apart."""


class Confidence:
    """Gives each piece of an answer its style. Plain where stdout is no terminal, is a dumb one, or NO_COLOR is set."""

    def __init__(self) -> None:
        console = Console(file=sys.stdout)
        self._colours = sys.stdout.isatty() and not (console.no_color or console.is_dumb_terminal)
        self._least = 1.0
        self.used = False
        """Whether a piece was coloured."""

    def style_of(self, entry: Token | Ended) -> Style | None:
        """The style of the entry's text: by the least probable token whose text it releases; None without
        log-probabilities."""
        scores = getattr(entry, "logprobs", ())
        if scores:
            self._least = min(self._least, math.exp(scores[0].logprob))
        if not (scores and entry.text and self._colours):
            return None
        least, self._least, self.used = self._least, 1.0, True
        return Style.parse(next(style for bound, style in _STEPS if least >= bound))


def legend() -> str:
    """What the colours mean, as one line for a terminal."""
    steps = [(style, f"at least {bound:.0%}" if bound else "less") for bound, style in _STEPS]
    shown = [Style.parse(style).render(words, color_system=ColorSystem.STANDARD) for style, words in steps]
    return f"probability of each token: {', '.join(shown)}"
