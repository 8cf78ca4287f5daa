"""Attention request by request against transformers' own, over the packed batch: the same numbers, in every layer.

Both are computed in every call of a running engine, on batches that mix prefill and decode, and compared there.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers import (
    AttentionInterface,
    ContinuousBatchingConfig,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tests.polled_engine import PolledEngine
from tests.unit.test_engine_batching import SHAPE, loaded, request, run_until_ended
from tokenrelay.worker.engine.transformers import batching
from tokenrelay.worker.engine.transformers.kv_cache import EngineSettings
from tokenrelay.worker.engine.transformers.layers.attention import attend_request_by_request

if TYPE_CHECKING:
    from collections.abc import Iterator

PROMPTS = [[(start * 11 + step * 3) % 61 for step in range(length)] for start, length in enumerate((1, 3, 40, 17, 29))]
ROUNDING = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 5e-2}


@dataclass(slots=True)
class Comparison:
    """An attention function that computes both ways, and what it saw."""

    difference: float = 0.0
    batches: list[list[int]] = field(default_factory=list)
    """Queries of each request, a list for each call."""

    def __call__(self, module: torch.nn.Module, *tensors: Any, **kwargs: Any) -> tuple[torch.Tensor, None]:
        # Each is given its own kwargs, into which the cache writes; a full cache takes the same keys twice.
        packed, _ = sdpa_attention_forward(module, *tensors, **dict(kwargs))
        ours, _ = ALL_ATTENTION_FUNCTIONS["own"](module, *tensors, **dict(kwargs))
        if kwargs.get("cache") is not None:
            ends = kwargs["cu_seq_lens_q"].tolist()
            self.batches.append([end - begin for begin, end in zip(ends, ends[1:], strict=False)])
            used = ends[-1]  # rows behind it are padding
            self.difference = max(self.difference, (ours - packed)[:, :used].abs().max().item())
        return ours, None


@pytest.fixture
def comparison() -> Iterator[Comparison]:
    comparison = Comparison()
    attend_request_by_request()
    AttentionInterface.register("own", ALL_ATTENTION_FUNCTIONS["sdpa"])
    yield comparison
    attend_request_by_request()


def model(key_value_heads: int, dtype: torch.dtype) -> LlamaForCausalLM:
    torch.manual_seed(key_value_heads)
    made = LlamaForCausalLM(LlamaConfig(**{**SHAPE, "num_key_value_heads": key_value_heads}))
    torch.nn.Module.to(made, dtype)
    return made


@pytest.mark.parametrize("key_value_heads", [1, 2, 4], ids=["one KV head", "GQA", "MHA"])
@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
def test_attention_equals_the_packed_one(comparison: Comparison, key_value_heads: int, dtype: torch.dtype) -> None:
    # 24 tokens a step: the longer prompts are prefilled in pieces, beside requests that decode already.
    settings = EngineSettings(slots=4, max_batch_tokens=24)
    engine = PolledEngine(loaded(model=model(key_value_heads, dtype)), settings)
    AttentionInterface.register("sdpa", comparison)
    engine.begin()
    try:
        answers = run_until_ended(engine, *[request(f"{i}", prompt=prompt) for i, prompt in enumerate(PROMPTS)])
    finally:
        engine.stop()
    assert all(len(tokens) == 24 for tokens, _ in answers.values())
    assert comparison.difference <= ROUNDING[dtype]
    assert any(1 in queries and max(queries) > 1 for queries in comparison.batches), "no batch mixed the two"
    assert any(len(queries) > 1 and set(queries) == {1} for queries in comparison.batches), "no batch only decoded"


@pytest.mark.parametrize("order", ["fifo", "prefill_first"])
def test_attention_beside_layers_with_a_sliding_window_gives_the_same_tokens(
    monkeypatch: pytest.MonkeyPatch, order: str
) -> None:
    """Such a layer overwrites keys, so that it can't be computed twice in one call: two engines are compared."""
    answers = []
    monkeypatch.setattr(batching, "ContinuousBatchingConfig", partial(ContinuousBatchingConfig, scheduler_type=order))
    for attention in (sdpa_attention_forward, None):
        engine = PolledEngine(loaded(model=windowed()), EngineSettings(slots=4, max_batch_tokens=24))
        if attention is not None:
            AttentionInterface.register("sdpa", attention)
        engine.begin()
        try:
            answers.append(run_until_ended(engine, *[request(f"{i}", prompt=each) for i, each in enumerate(PROMPTS)]))
        finally:
            engine.stop()
            attend_request_by_request()
    assert answers[0] == answers[1]


def windowed() -> Qwen3ForCausalLM:
    """A layer with a sliding window after one without: the cache has a part for each kind."""
    torch.manual_seed(5)
    config = Qwen3Config(
        **SHAPE,
        head_dim=8,
        use_sliding_window=True,
        sliding_window=16,
        layer_types=["full_attention", "sliding_attention"],
    )
    made = Qwen3ForCausalLM(config)
    torch.nn.Module.to(made, torch.float64)
    return made


def test_attention_without_a_paged_cache_is_transformers_own() -> None:
    attend_request_by_request()
    plain = model(2, torch.float64)
    plain.config._attn_implementation = "sdpa"
    ids = torch.tensor([[5, 9, 33, 2]])
    with torch.no_grad():
        ours = plain(ids).logits
        AttentionInterface.register("sdpa", sdpa_attention_forward)
        try:
            assert torch.equal(plain(ids).logits, ours)
        finally:
            attend_request_by_request()
