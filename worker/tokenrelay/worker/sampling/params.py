"""Sampling options of one request. A further option of the draw begins here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tokenrelay.shared.options import Submission


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the tokens of one request are drawn."""

    temperature: float  # 0 takes the likeliest token
    top_k: int  # 0 = off
    top_p: float  # 1 = off
    seed: int  # 0 <= seed < 2**63

    @classmethod
    def of(cls, options: Submission) -> SamplingParams:
        """The request's own; submit has resolved the seed."""
        seed = options["seed"]
        assert seed is not None
        return cls(options["temperature"], options["top_k"], options["top_p"], seed)


NEUTRAL: Final[Mapping[str, Any]] = {"temperature": 0.0, "top_k": 0, "top_p": 1.0}
"""The options that this package's draw supports, in any engine, and the values at which they have no effect."""
DRAW_OPTIONS: Final = frozenset(NEUTRAL)
