"""Log-probabilities of raw scores against torch's own log-softmax and topk."""

from __future__ import annotations

import pytest
import torch

from tokenrelay.worker.sampling.logprobs import largest, raw_logprobs


@pytest.mark.parametrize("vocab", [7, 64, 300, 2_560, 49_152, 49_153, 151_936])
@pytest.mark.parametrize("top", [0, 1, 5, 20])
def test_the_largest_are_those_of_topk(vocab: int, top: int) -> None:
    """By blocks and without, a last block that isn't full included."""
    values = torch.randn(3, vocab, generator=torch.Generator().manual_seed(vocab + top), dtype=torch.float64)
    values[0, -1] = values[1, 0] = 9.0
    found, ids = largest(values, top)
    expected, places = values.topk(min(top, vocab), dim=-1)
    assert torch.equal(found, expected)
    assert torch.equal(ids, places)


def test_all_of_the_largest_may_be_in_one_block() -> None:
    values = torch.zeros(1, 4_096)
    values[0, 1000:1020] = torch.arange(1.0, 21.0)
    assert largest(values, 20)[1].tolist() == [list(range(1019, 999, -1))]


@pytest.mark.parametrize("rows", [[0], [1], [0, 1], [0, 2], [0, 1, 2]])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_rows_are_their_own_and_scores_stay(rows: list[int], dtype: torch.dtype) -> None:
    scores = torch.randn(3, 512, generator=torch.Generator().manual_seed(1)).to(dtype)
    before = scores.clone()
    for row, raw in zip(rows, raw_logprobs(scores, rows, 2), strict=True):
        own = scores[row].to(torch.float64 if dtype is torch.float64 else torch.float32).log_softmax(-1)
        values, ids = own.topk(2)
        assert raw.ranked(7, 2) == ((7, float(own[7])), *zip(ids.tolist(), values.tolist(), strict=True))
        assert raw.ranked(7, 0) == ((7, float(own[7])),)
    assert torch.equal(scores, before)
