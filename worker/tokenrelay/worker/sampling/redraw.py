"""The draw made again at every position of an answer that is there: the core of its verification.

Pure: the scores come from one teacher-forced pass of the model over prompt and answer, whoever made it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tokenrelay.worker.sampling.draw import draw_scores
from tokenrelay.worker.sampling.row import Row

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from tokenrelay.worker.sampling.row import TokenMask

_ROWS: Final = 64
"""Positions at a time: a row of scores has the vocabulary's size."""


def redraw(
    logits: torch.Tensor, prompt: Row, answer_ids: Sequence[int], token_mask: TokenMask | None = None
) -> list[int | None]:
    """The token drawn at each position; None where none is left.

    logits: (positions, vocab), the raw scores of tokens 1, 2, … of the answer: one position more than tokens draws
    what follows the last of them, which is an end token where the answer ended as `stop`. prompt: the request before
    its first token.
    """
    drawn: list[int | None] = []
    for begin in range(0, len(logits), _ROWS):
        part = logits[begin : begin + _ROWS]
        rows = [_row(prompt, answer_ids[: begin + index], token_mask) for index in range(len(part))]
        best, token_ids = draw_scores(part, rows).max(dim=-1)
        drawn += [
            token_id if found else None
            for token_id, found in zip(token_ids.tolist(), best.isfinite().tolist(), strict=True)
        ]
    return drawn


def _row(prompt: Row, answer_ids: Sequence[int], token_mask: TokenMask | None) -> Row:
    mask = None if token_mask is None else token_mask(answer_ids)
    return Row(prompt.params, prompt.prompt_ids, answer_ids, prompt.end_ids, mask)


def first_difference(
    logits: torch.Tensor, prompt: Row, answer_ids: Sequence[int], token_mask: TokenMask | None = None
) -> int | None:
    """The index, from 1, of the first token of the answer that the draw doesn't give; None where it gives all of them.

    With one position more than tokens, its index where the draw there doesn't end the request.
    """
    drawn = redraw(logits, prompt, answer_ids, token_mask)
    for position, token_id in enumerate(drawn, 1):
        if position > len(answer_ids):
            expected = token_id in prompt.end_ids
        else:
            expected = token_id == answer_ids[position - 1]
        if not expected:
            return position
    return None
