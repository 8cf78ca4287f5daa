"""A row of the draw: what the next token of one request depends on, beside the model's scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from tokenrelay.worker.sampling.params import SamplingParams

TokenMask = Callable[[Sequence[int]], torch.Tensor]
"""Gives the bitmask of the tokens that may follow an answer's token IDs: a pure function of them, as of a grammar.

Returns (ceil(vocabulary / 32),), int32, on the CPU: bit i of word w is set where token 32 w + i is allowed, as
llguidance and xgrammar have it. All 0 where no token may follow. Never raises.
"""


@dataclass(frozen=True, slots=True)
class Row:
    """One request at one position. Nothing else may decide its draw."""

    params: SamplingParams
    prompt_ids: Sequence[int]
    emitted_ids: Sequence[int]
    """All tokens of the answer so far, of every attempt."""
    end_ids: frozenset[int] = frozenset()
    """Tokens that end the request: `stop_token_ids`, and the model's end-of-sequence tokens unless they are ignored."""
    mask: torch.Tensor | None = None
    """What a `TokenMask` gives after `emitted_ids`."""

    @property
    def position(self) -> int:
        """N, from 1: the index of the token to draw."""
        return len(self.emitted_ids) + 1

    @property
    def adjusts(self) -> bool:
        """Whether anything changes its raw scores, before temperature and filters."""
        return self.mask is not None or self.params.adjusts

    @property
    def masks(self) -> bool:
        """Whether anything excludes tokens, so that none may be left."""
        return self.mask is not None or bool(self.params.bad_words or self.params.min_tokens)
