"""Log-probabilities of the raw scores: what a token's probability was before the draw changed anything."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    Logprobs = tuple[tuple[int, float], ...]
    """(vocabulary ID, natural logarithm of its probability) of the drawn token, then of the likeliest, falling."""

_BLOCK: Final = 64


@dataclass(frozen=True, slots=True)
class RawLogprobs:
    """One row's, before it's known which token was drawn."""

    of_all: torch.Tensor
    """(vocab,), float32 or more."""
    likeliest: torch.Tensor
    """(top,), falling."""
    ids: torch.Tensor
    """(top,), those of `likeliest`."""

    def ranked(self, token_id: int, top: int) -> Logprobs:
        """What is reported of a token that was drawn."""
        likeliest = zip(self.ids[:top].tolist(), self.likeliest[:top].tolist(), strict=True)
        return ((token_id, float(self.of_all[token_id])), *likeliest)


def raw_logprobs(scores: torch.Tensor, rows: Sequence[int], top: int) -> list[RawLogprobs]:
    """Log-softmax of some rows of the raw scores, (rows, vocab), rising by their index, and its `top` largest."""
    chosen = scores[: len(rows)] if rows[-1] == len(rows) - 1 else scores[list(rows)]  # a slice isn't copied
    of_all = (chosen if chosen.dtype.itemsize > 4 else chosen.float()).log_softmax(dim=-1)
    return [RawLogprobs(*row) for row in zip(of_all, *largest(of_all, top), strict=True)]


def largest(values: torch.Tensor, top: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The `top` largest of each row, falling, and where they are.

    From the blocks whose own largest are the largest: on a CPU a sixth of the time of topk over a vocabulary of 49k.
    """
    rows, vocab = values.shape
    whole = vocab - vocab % _BLOCK
    if values.is_cuda or vocab < 2 * top * _BLOCK:
        return values.topk(min(top, vocab), dim=-1)
    _, blocks = values[:, :whole].view(rows, -1, _BLOCK).amax(dim=-1).topk(top, dim=-1)
    ids = (blocks.unsqueeze(-1) * _BLOCK + torch.arange(_BLOCK)).flatten(1)
    ids = torch.cat([ids, torch.arange(whole, vocab).expand(rows, -1)], dim=1)
    found, places = values.gather(1, ids).topk(top, dim=-1)
    return found, ids.gather(1, places)
