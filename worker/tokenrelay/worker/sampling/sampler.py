"""Position-keyed sampling: the noise that picks token N is a function of (seed, N, vocabulary ID) alone.

Pure functions on tensors; knows nothing of requests in flight or of an engine. So a draw can't depend on the
neighbours in the batch, on the row, or on the number of attempts before token N.

Gumbel-max: Gumbel 1954; top-p: Holtzman et al. 2020, section 3.1; min-p: Nguyen et al. 2024; the mix is splitmix64
(Steele et al. 2014).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenrelay.worker.sampling.params import SamplingParams

PARAMETER_ROWS = 6  # key low, key high, temperature, top-k, top-p tail, log min-p; all as 32-bit patterns in int32

_CANDIDATES = 1024  # top-p 0.95 of a language model's next token is a few hundred at most
_CACHED = (
    1 << 18
)  # int64 values that fit a CPU's cache: a whole step's noise would go through memory in every operation
_MASK64 = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB


def _signed(value: int) -> int:
    """The int64 of the same 64 bits."""
    return value - (1 << 64) if value >> 63 else value


def _mix_int(value: int) -> int:
    value = ((value ^ (value >> 30)) * _MIX_1) & _MASK64
    value = ((value ^ (value >> 27)) * _MIX_2) & _MASK64
    return value ^ (value >> 31)


def noise_key(seed: int, position: int) -> int:
    """The 64-bit key of token `position` (from 1) under `seed`, as a signed integer.

    Made on the host: a CUDA graph replays what was captured, so nothing that changes with each step may be
    computed there from anything but its input tensors.
    """
    state = _mix_int((seed + _GOLDEN) & _MASK64)
    return _signed(_mix_int((state + position * _GOLDEN) & _MASK64))


def encode_params(rows: Sequence[tuple[SamplingParams, int]]) -> torch.Tensor:
    """(params, position N) of each row as (PARAMETER_ROWS, rows), int32, on the CPU.

    Top-p travels as 1 - top_p, rounded once from float64: what transformers compares cumulated probabilities with;
    min-p as its logarithm, which scores whose largest is 0 are compared with.
    """
    keys = torch.tensor([noise_key(params.seed, position) for params, position in rows], dtype=torch.int64)
    floats = torch.tensor(
        [(params.temperature, 1.0 - params.top_p, _log(params.min_p)) for params, _ in rows], dtype=torch.float32
    )
    temperature, tail, floor = floats.view(-1, 3).view(torch.int32).unbind(dim=1)
    top_k = torch.tensor([params.top_k for params, _ in rows], dtype=torch.int32)
    low = (keys & 0xFFFFFFFF).to(torch.int32)
    high = (keys >> 32).to(torch.int32)
    return torch.stack([low, high, temperature, top_k, tail, floor])


def _log(probability: float) -> float:
    return math.log(probability) if probability > 0 else -math.inf


def noise_bits(keys: torch.Tensor, vocab: int) -> torch.Tensor:
    """64 random bits for each row and vocabulary ID. keys: (rows,), int64. Returns (rows, vocab), int64."""
    ids = torch.arange(1, vocab + 1, device=keys.device, dtype=torch.int64) * _signed(_GOLDEN)
    return _mix_tensor(keys.unsqueeze(1) + ids)


def gumbel_noise(keys: torch.Tensor, vocab: int) -> torch.Tensor:
    """Gumbel(0, 1) noise for each row and vocabulary ID.

    keys: (rows,), int64. Returns (rows, vocab), float32, always finite: whatever the scores' dtype, so float32
    and float64 logits get the same draws.
    """
    bits = noise_bits(keys, vocab)
    # 63 bits straight to float32 keep their relative precision down to 2**-64, where the winning noise comes from; near
    # 1 they would round to 1, whose noise is -inf.
    uniform = (bits >> 1).bitwise_and_((1 << 63) - 1).to(torch.float32)
    uniform.mul_(2.0**-63).add_(2.0**-64).clamp_(max=1.0 - 2.0**-24)
    return uniform.neg_().log1p_().neg_().log_().neg_()


def _mix_tensor(bits: torch.Tensor) -> torch.Tensor:
    """splitmix64's finalizer in place; int64 products wrap around, and `>>` is arithmetic, hence the masks."""
    bits ^= (bits >> 30).bitwise_and_((1 << 34) - 1)
    bits *= _signed(_MIX_1)
    bits ^= (bits >> 27).bitwise_and_((1 << 37) - 1)
    bits *= _signed(_MIX_2)
    bits ^= (bits >> 31).bitwise_and_((1 << 33) - 1)
    return bits


def sample_scores(logits: torch.Tensor, params: torch.Tensor) -> torch.Tensor:
    """Scores whose argmax is the draw of each row.

    logits: (rows, vocab), any float dtype. params: (PARAMETER_ROWS, >= rows), int32, from `encode_params`.
    Returns (rows, vocab), float32 or float64; rows of temperature 0 keep their logits.
    """
    scores = logits if logits.dtype in (torch.float32, torch.float64) else logits.float()
    params = params[:, : scores.shape[0]]
    temperature = params[2].view(torch.float32)
    sampled = temperature > 0
    if is_capturing(scores):
        # A graph replays the rows it was captured with, so every row takes every path.
        return torch.where(
            sampled.unsqueeze(1),
            _draw_scores(_filter(_above_min_p(_tempered(scores, temperature), params), params), params),
            scores,
        )
    if not bool(sampled.any()):
        return scores
    if bool(sampled.all()):
        return _draw_scores(_filter_some(_tempered(scores, temperature), params), params)
    rows = sampled.nonzero().squeeze(1)
    tempered = _tempered(scores[rows], temperature[rows])
    drawn = _draw_scores(_filter_some(tempered, params[:, rows]), params[:, rows])
    return scores.index_copy(0, rows, drawn)


def is_capturing(scores: torch.Tensor) -> bool:
    """Whether a CUDA graph is being captured: nothing may be read from the device then."""
    return scores.is_cuda and torch.cuda.is_current_stream_capturing()


def _tempered(scores: torch.Tensor, temperature: torch.Tensor) -> torch.Tensor:
    """Scores over temperature, the largest shifted to 0 first: a tiny temperature must not overflow to +inf."""
    divisor = torch.where(temperature > 0, temperature, 1.0).to(scores.dtype)
    return (scores - scores.amax(dim=-1, keepdim=True)) / divisor.unsqueeze(1)


def _draw_scores(scores: torch.Tensor, params: torch.Tensor) -> torch.Tensor:
    keys = (params[1].to(torch.int64) << 32) | (params[0].to(torch.int64) & 0xFFFFFFFF)
    rows, vocab = scores.shape
    if scores.is_cuda or rows * vocab <= _CACHED:
        return scores + gumbel_noise(keys, vocab)
    drawn = torch.empty_like(scores)
    part = max(_CACHED // vocab, 1)
    for begin in range(0, rows, part):
        end = begin + part
        torch.add(scores[begin:end], gumbel_noise(keys[begin:end], vocab), out=drawn[begin:end])
    return drawn


def _above_min_p(scores: torch.Tensor, params: torch.Tensor) -> torch.Tensor:
    """Min-p (Nguyen et al. 2024): drops tokens less likely than this share of the likeliest. The largest score is 0."""
    return scores.masked_fill(scores < params[5].view(torch.float32).unsqueeze(1), -torch.inf)


def _filter_some(scores: torch.Tensor, params: torch.Tensor) -> torch.Tensor:
    """`_above_min_p` and `_filter`, only for rows that ask: on a CPU a sort costs more than all the noise."""
    limited = (params[5].view(torch.float32) > -torch.inf).nonzero().squeeze(1)
    if limited.numel() == len(scores):
        scores = _above_min_p(scores, params)
    elif limited.numel():
        scores = scores.index_copy(0, limited, _above_min_p(scores[limited], params[:, limited]))
    filtering = (params[3] > 0) | (params[4].view(torch.float32) > 0)
    if not bool(filtering.any()):
        return scores
    rows = filtering.nonzero().squeeze(1)
    asked, wanted = scores[rows], params[:, rows]
    if scores.is_cuda or scores.shape[1] < 2 * _CANDIDATES:
        return scores.index_copy(0, rows, _filter(asked, wanted))
    filtered, decided = _filter_candidates(asked, wanted)
    rest = (~decided).nonzero().squeeze(1)
    if rest.numel():
        filtered.index_copy_(0, rest, _filter(asked[rest], wanted[:, rest]))
    return scores.index_copy(0, rows, filtered)


def _filter(scores: torch.Tensor, params: torch.Tensor) -> torch.Tensor:
    """Top-k, then top-p, as transformers' warpers in that order; what they drop becomes -inf."""
    vocab = scores.shape[1]
    top_k = params[3].to(torch.int64)
    tail = params[4].view(torch.float32).unsqueeze(1)
    # Stable, so that the order of equal scores depends on the vocabulary ID and not on the batch.
    ordered, order = scores.sort(dim=-1, stable=True)
    kept = torch.where(top_k > 0, top_k, vocab).clamp(max=vocab)
    threshold = ordered.gather(1, (vocab - kept).unsqueeze(1))
    below = ordered < threshold
    cumulated = ordered.masked_fill(below, -torch.inf).softmax(dim=-1).cumsum(dim=-1)
    dropped = below | ((cumulated <= tail) & (tail > 0))
    dropped[:, -1] = False  # the likeliest token always stays
    return scores.masked_fill(torch.empty_like(dropped).scatter_(1, order, dropped), -torch.inf)


def _filter_candidates(scores: torch.Tensor, params: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`_filter` from the likeliest candidates alone, and for which rows that is exact: those that drop a candidate.

    A row's result depends on the row alone, so it is the same in every batch. A sixth of the sort's time at a
    vocabulary of 49k.
    """
    top, ids = _likeliest(scores)
    top_k = params[3].to(torch.int64).unsqueeze(1)
    tail = params[4].view(torch.float32).unsqueeze(1)
    threshold = top.gather(1, (top_k.clamp(min=1, max=_CANDIDATES) - 1))
    passing = (top >= threshold) | (top_k == 0)
    mass = (top - top[:, :1]).exp()
    total = torch.where(
        top_k > 0, (mass * passing).sum(dim=-1, keepdim=True), (scores - top[:, :1]).exp().sum(dim=-1, keepdim=True)
    )
    above = mass.cumsum(dim=-1) - mass
    kept = passing & ((total - above > tail * total) | (tail <= 0))
    kept[:, 0] = True
    # Scores equal to the last kept one must all be among the candidates.
    edge = top.masked_fill(~kept, torch.inf).amin(dim=-1)
    decided = (edge > top[:, -1]) & (top_k.squeeze(1) <= _CANDIDATES)
    filtered = torch.full_like(scores, -torch.inf).scatter_(1, ids, top.masked_fill(~kept, -torch.inf))
    return filtered, decided


def _likeliest(scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The scores and vocabulary IDs of the candidates, best first, the larger ID first among equals as in `_filter`."""
    top, ids = scores.topk(_CANDIDATES, dim=-1)
    ids, by_id = ids.sort(dim=-1, descending=True)
    top, by_score = top.gather(1, by_id).sort(dim=-1, descending=True, stable=True)
    return top, ids.gather(1, by_score)
