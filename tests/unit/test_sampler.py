"""Position-keyed sampling alone: what it draws, and that nothing but (seed, position, vocabulary ID) decides."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from tokenrelay.worker.sampling import sampler
from tokenrelay.worker.sampling.params import SamplingParams
from tokenrelay.worker.sampling.sampler import _filter, encode_params, gumbel_noise, noise_key, sample_scores

pytestmark = pytest.mark.usefixtures("one_torch_thread")
PLAIN = SamplingParams(temperature=1.0, top_k=0, top_p=1.0, seed=0)
KINDS = [
    SamplingParams(0.0, 0, 1.0, seed=1),
    SamplingParams(1.0, 0, 1.0, seed=2),
    SamplingParams(0.6, 40, 1.0, seed=3),
    SamplingParams(1.4, 0, 0.7, seed=4),
    SamplingParams(0.8, 30, 0.9, seed=2**63 - 1),
    SamplingParams(0.0, 5, 0.5, seed=6),
]


def keys(seed: int, positions: range) -> torch.Tensor:
    return torch.tensor([noise_key(seed, position) for position in positions])


def draw(logits: torch.Tensor, rows: list[tuple[SamplingParams, int]]) -> list[int]:
    draws: list[int] = sample_scores(logits, encode_params(rows)).argmax(dim=-1).tolist()
    return draws


def chi_square_limit(degrees: int) -> float:
    """The 99.99 % quantile, by Wilson and Hilferty's approximation (1931)."""
    spread = 2 / (9 * degrees)
    return degrees * (1 - spread + 3.719 * math.sqrt(spread)) ** 3


@pytest.mark.parametrize("over", ["positions", "seeds"])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_softmax(over: str, temperature: float) -> None:
    draws = 40_000
    logits = torch.linspace(-2.0, 2.5, 24)[torch.randperm(24, generator=torch.Generator().manual_seed(0))]
    params = encode_params([(SamplingParams(temperature, 0, 1.0, seed=0), 1)]).expand(-1, draws).clone()
    pairs = ((11, n) if over == "positions" else (n, 11) for n in range(1, draws + 1))
    key = torch.tensor([noise_key(seed, position) for seed, position in pairs])
    params[0], params[1] = (key & 0xFFFFFFFF).to(torch.int32), (key >> 32).to(torch.int32)
    drawn = sample_scores(logits.expand(draws, -1), params).argmax(dim=-1)
    expected = (logits / temperature).softmax(-1) * draws
    counts = drawn.bincount(minlength=24)
    assert float(((counts - expected) ** 2 / expected).sum()) < chi_square_limit(23)


def test_neighbouring_positions_are_independent() -> None:
    drawn = gumbel_noise(keys(5, range(1, 20_001)), 4).argmax(dim=-1)
    pairs = (drawn[:-1] * 4 + drawn[1:]).bincount(minlength=16)
    expected = 19_999 / 16
    assert float(((pairs - expected) ** 2 / expected).sum()) < chi_square_limit(15)


def test_noise_is_gumbel_and_finite() -> None:
    noise = gumbel_noise(keys(3, range(1, 65)), 49_152)
    assert bool(noise.isfinite().all())
    assert float(noise.mean()) == pytest.approx(0.5772, abs=2e-3)
    assert float(noise.var()) == pytest.approx(math.pi**2 / 6, abs=5e-3)
    # The winners: the largest of V values is Gumbel again, moved by log V. A coarse uniform would cut this tail.
    largest = noise.amax(dim=1) - math.log(49_152)
    assert float(largest.mean()) == pytest.approx(0.5772, abs=0.5)
    assert float(largest.max()) > 2.5


def test_noise_does_not_depend_on_the_vocabulary_size() -> None:
    assert torch.equal(gumbel_noise(keys(3, range(1, 9)), 1000)[:, :77], gumbel_noise(keys(3, range(1, 9)), 77))


def test_noise_key_is_pinned() -> None:
    # A changed mix changes every answer that is resumed by a newer worker: that needs another wire version.
    assert [noise_key(0, 1), noise_key(42, 7), noise_key(2**63 - 1, 1_000_000)] == [
        -6411193824288604561,
        3603600226484403572,
        -830519627655633578,
    ]


def test_nearby_seeds_and_positions_share_no_key() -> None:
    seen = {noise_key(seed, position) for seed in range(200) for position in range(1, 200)}
    assert len(seen) == 200 * 199


@settings(deadline=None, max_examples=40)
@given(
    order=st.permutations(range(len(KINDS))),
    positions=st.lists(st.integers(1, 10_000), min_size=len(KINDS), max_size=len(KINDS)),
    size=st.integers(1, len(KINDS)),
)
def test_a_row_is_drawn_alike_in_any_batch(order: list[int], positions: list[int], size: int) -> None:
    logits = torch.randn(len(KINDS), 300, generator=torch.Generator().manual_seed(1)) * 3
    rows = list(zip(KINDS, positions, strict=True))
    alone = [draw(logits[[index]], [rows[index]])[0] for index in range(len(KINDS))]
    chosen = order[:size]
    assert draw(logits[chosen], [rows[index] for index in chosen]) == [alone[index] for index in chosen]


def test_a_large_batch_is_drawn_in_parts_and_no_other_way(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(7, 40, generator=torch.Generator().manual_seed(4))
    params = encode_params([(SamplingParams(0.9, 0, 1.0, seed), 5) for seed in range(7)])
    whole = sample_scores(logits, params)
    for cached in (1, 40, 100, 7 * 40 - 1):
        monkeypatch.setattr(sampler, "_CACHED", cached)
        assert torch.equal(sample_scores(logits, params), whole)


def test_temperature_0_is_argmax_of_the_raw_logits() -> None:
    logits = torch.randn(2, 500, generator=torch.Generator().manual_seed(2))
    rows = [(KINDS[0], 3), (KINDS[5], 4)]
    assert torch.equal(sample_scores(logits, encode_params(rows)), logits)
    mixed = sample_scores(logits, encode_params([(KINDS[0], 3), (PLAIN, 4)]))
    assert torch.equal(mixed[0], logits[0])
    assert not torch.equal(mixed[1], logits[1])


def test_a_tiny_temperature_is_argmax_too() -> None:
    logits = torch.tensor([[3.0, 5.0, 5.5, -torch.inf]])
    assert draw(logits, [(SamplingParams(1e-38, 0, 1.0, seed=1), 1)]) == [2]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("top_k", "top_p"),
    [(1, 1.0), (7, 1.0), (999, 1.0), (0, 0.001), (0, 0.5), (0, 0.9), (0, 0.999), (20, 0.7), (0, 0.0)],
)
def test_filters_keep_what_transformers_warpers_keep(top_k: int, top_p: float, dtype: torch.dtype) -> None:
    logits = torch.randn(16, 200, generator=torch.Generator().manual_seed(3), dtype=dtype) * 4
    logits[3, :50] = -torch.inf
    logits[4, 10:13] = logits[4, 20]
    params = SamplingParams(0.8, top_k, top_p, seed=5)
    scores = sample_scores(logits, encode_params([(params, row + 1) for row in range(16)]))
    expected = TemperatureLogitsWarper(0.8)(torch.empty(0, dtype=torch.long), logits)
    if top_k:
        expected = TopKLogitsWarper(top_k)(torch.empty(0, dtype=torch.long), expected)
    if top_p < 1:
        expected = TopPLogitsWarper(top_p)(torch.empty(0, dtype=torch.long), expected)
    assert torch.equal(scores.isfinite(), expected.isfinite())


def test_equal_scores_at_the_edge_of_top_k_stay_and_of_top_p_go_by_vocabulary_id() -> None:
    logits = torch.zeros(2, 10)
    rows = [(SamplingParams(1.0, 3, 1.0, seed=0), 1), (SamplingParams(1.0, 0, 0.35, seed=0), 1)]
    kept = sample_scores(logits, encode_params(rows)).isfinite()
    assert kept[0].tolist() == [True] * 10
    assert kept[1].tolist() == [False] * 6 + [True] * 4


@pytest.mark.parametrize(("top_k", "top_p"), [(1, 1.0), (50, 1.0), (2000, 0.9), (0, 0.5), (0, 0.95), (300, 0.8)])
@pytest.mark.parametrize("spread", [0.01, 3.0])
def test_candidates_keep_what_the_whole_vocabulary_would(top_k: int, top_p: float, spread: float) -> None:
    # Rounded to bfloat16, so that many scores are equal; a flat row isn't decided by its candidates.
    logits = (torch.randn(12, 4000, generator=torch.Generator().manual_seed(7)) * spread).bfloat16().float()
    logits[0] = 1.0
    logits[1, 5:] = -torch.inf
    rows = [(SamplingParams(1.0, top_k, top_p, seed=5), row + 1) for row in range(12)]
    scores = sample_scores(logits, encode_params(rows))
    for row in range(12):
        expected = _filter(logits[row].unsqueeze(0), encode_params([rows[row]]))[0]
        assert torch.equal(scores[row].isfinite(), expected.isfinite())


def test_rows_without_filters_keep_every_token_beside_rows_with_them() -> None:
    logits = torch.randn(2, 100, generator=torch.Generator().manual_seed(4))
    scores = sample_scores(logits, encode_params([(PLAIN, 1), (SamplingParams(1.0, 3, 1.0, seed=0), 1)]))
    assert int(scores[0].isfinite().sum()) == 100
    assert int(scores[1].isfinite().sum()) == 3


def test_float64_and_half_logits_draw_alike() -> None:
    logits = (torch.randn(64, 400, generator=torch.Generator().manual_seed(5)) * 2).bfloat16()
    rows = [(KINDS[index % len(KINDS)], index + 1) for index in range(64)]
    expected = draw(logits.float(), rows)
    assert draw(logits, rows) == expected
    assert draw(logits.double(), rows) == expected
    assert sample_scores(logits.double(), encode_params(rows)).dtype == torch.float64


def test_more_score_rows_than_parameters_used() -> None:
    # A split prefill: the manager's argument rows are wider than the scores, or hold defaults behind the new tokens.
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(6))
    params = torch.zeros(sampler.PARAMETER_ROWS, 8, dtype=torch.int32)
    params[:, :2] = encode_params([(PLAIN, 1), (PLAIN, 2)])
    scores = sample_scores(logits, params)
    assert scores.argmax(-1).tolist()[:2] == draw(logits[:2], [(PLAIN, 1), (PLAIN, 2)])
    assert torch.equal(scores[2], logits[2])
