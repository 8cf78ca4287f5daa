"""Log-probabilities of the raw scores: what a token's probability was before the draw changed anything."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    Logprobs = tuple[tuple[int, float], ...]
    """(vocabulary ID, natural logarithm of its probability) of the drawn token, then of the likeliest, falling."""


def log_probabilities(scores: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
    """Log-softmax of some rows of the raw scores. scores: (rows, vocab). Returns (some, vocab), float32 or more."""
    chosen = scores[list(rows)]
    return (chosen if chosen.dtype.itemsize > 4 else chosen.float()).log_softmax(dim=-1)


def ranked(row: torch.Tensor, token_id: int, top: int) -> Logprobs:
    """What is reported of a token that was drawn. row: (vocab,), from `log_probabilities`."""
    values, ids = row.topk(min(top, row.shape[0]))
    likeliest = zip(ids.tolist(), values.tolist(), strict=True)
    return ((token_id, float(row[token_id])), *likeliest)
