"""Sampling options of one request."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the tokens of one request are drawn."""

    temperature: float  # 0 takes the likeliest token
    top_k: int  # 0 = off
    top_p: float  # 1 = off
    seed: int  # 0 <= seed < 2**63


DRAW_OPTIONS: Final = frozenset({"temperature", "top_k", "top_p"})
"""The options of a request that this package's draw supports, in any engine."""
