"""What a request asks of the draw."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the tokens of one request are drawn."""

    temperature: float  # 0 takes the likeliest token
    top_k: int  # 0 = off
    top_p: float  # 1 = off
    seed: int  # 0 <= seed < 2**63
