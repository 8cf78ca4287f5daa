"""The draw: one pure pipeline from raw scores to the next token, for any engine. docs/sampling.md specifies it.

raw scores ─► logit bias ─► repetition, frequency, presence penalty ─► bad words ─► token mask ─► min tokens
           ─► temperature ─► min-p ─► top-k ─► top-p ─► + noise(seed, N, ID) ─► argmax
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tokenrelay.worker.sampling.adjustments import adjusted
from tokenrelay.worker.sampling.sampler import encode_params, sample_scores

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from tokenrelay.worker.sampling.row import Row

DRAW_VERSION: Final = 1
"""Of docs/sampling.md. It changes with whatever changes a token of a request that this version can serve."""


def draw_scores(logits: torch.Tensor, rows: Sequence[Row]) -> torch.Tensor:
    """Scores whose argmax is the draw of each row, all -inf or NaN where there is no token to draw.

    logits: (rows, vocab), any float dtype. Returns (rows, vocab), float32 or float64.
    """
    scores = adjusted(logits, {index: row for index, row in enumerate(rows) if row.adjusts})
    return sample_scores(scores, encode_params([(row.params, row.position) for row in rows]).to(logits.device))
