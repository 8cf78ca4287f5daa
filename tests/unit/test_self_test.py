"""The engine's comparison with the model's own forward pass: what passes, and each kind of thing that must not."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers import AttentionInterface, LlamaConfig, LlamaForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from tests.families.folders import WINDOW, tiny_config, tiny_model
from tests.unit.test_engine_batching import SHAPE, loaded
from tokenrelay.worker.engine.contract import ModelError
from tokenrelay.worker.engine.transformers.batching import TransformersEngine
from tokenrelay.worker.engine.transformers.kv_cache import EngineSettings
from tokenrelay.worker.engine.transformers.layers.attention import attend_request_by_request
from tokenrelay.worker.engine.transformers.self_test import draw_error, ordinary_ids, score_error

if TYPE_CHECKING:
    from transformers import PreTrainedModel

pytestmark = pytest.mark.usefixtures("one_torch_thread")


def start(model: PreTrainedModel, dtype: torch.dtype = torch.float32, **settings: int) -> TransformersEngine:
    torch.nn.Module.to(model, dtype)
    engine = TransformersEngine(
        replace(loaded(model=model), dtype=dtype), EngineSettings(**{"slots": 8, "kv_cache_tokens": 512, **settings})
    )
    engine.allocate()
    return engine


def warm_up(model: PreTrainedModel, dtype: torch.dtype = torch.float32, **settings: int) -> None:
    engine = start(model, dtype, **settings)
    try:
        engine.prepare()
    finally:
        engine.stop()


def tiny(model_type: str, **changes: Any) -> PreTrainedModel:
    return tiny_model(tiny_config(model_type, **changes))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_fit_model_passes_in_every_format(dtype: torch.dtype) -> None:
    warm_up(tiny("llama"), dtype)


@pytest.mark.parametrize("model_type", ["llama", "mistral", "gpt2", "qwen3_moe"])
def test_fit_models_pass(model_type: str) -> None:
    warm_up(tiny(model_type))


@pytest.mark.parametrize("settings", [{"slots": 1}, {"kv_cache_tokens": 32}, {"max_batch_tokens": 8}], ids=str)
def test_a_small_engine_passes(settings: dict[str, int]) -> None:
    warm_up(tiny("llama"), torch.float32, **settings)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("model_type", ["bloom", "mpt", "gptj"])
def test_attention_that_does_not_read_the_cache_is_refused(model_type: str, dtype: torch.dtype) -> None:
    """Served unchecked, BLOOM and MPT answer with other requests' texts from the second token on."""
    with pytest.raises(ModelError, match=r"can't be served: .*KV cache \(token \d after a prompt of \d+ differs"):
        warm_up(tiny(model_type), dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_requests_that_read_each_others_keys_are_refused(dtype: torch.dtype) -> None:
    def attend(*arguments: Any, **named: Any) -> Any:
        mask = arguments[4]
        if "cache" in named and mask is not None:
            arguments = (*arguments[:4], torch.zeros_like(mask), *arguments[5:])
        return sdpa_attention_forward(*arguments, **named)

    engine = start(tiny("llama"), dtype)
    AttentionInterface.register("sdpa", attend)
    try:
        with pytest.raises(ModelError, match="can't be served"):
            engine.prepare()
    finally:
        attend_request_by_request()
        engine.stop()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_wrong_positions_are_refused(dtype: torch.dtype) -> None:
    """A model that counts positions itself counts through the packed sequence of all requests."""
    model = tiny("llama")

    def count_through(_: object, arguments: object, named: dict[str, Any]) -> tuple[object, dict[str, Any]]:
        if "cache" in named:
            named["position_ids"] = torch.arange(named["position_ids"].shape[1]).unsqueeze(0)
        return arguments, named

    model.register_forward_pre_hook(count_through, with_kwargs=True)
    with pytest.raises(ModelError, match="can't be served"):
        warm_up(model, dtype)


def test_another_window_is_refused() -> None:
    """Only a prompt longer than the window shows it, here by a single key."""
    model = tiny("mistral", sliding_window=2 * WINDOW)

    def narrow(_: object, __: object, named: dict[str, Any]) -> None:
        model.config.sliding_window = 2 * WINDOW - ("cache" not in named)

    model.register_forward_pre_hook(narrow, with_kwargs=True)
    with pytest.raises(ModelError, match="after a prompt of 87 differs"):
        warm_up(model, max_batch_tokens=64)


@pytest.mark.parametrize("broken", [math.nan, math.inf, 1e30], ids=str)
def test_broken_weights_are_refused(broken: float) -> None:
    model = LlamaForCausalLM(LlamaConfig(**SHAPE))
    model.model.norm.weight.data[3] = broken
    with pytest.raises(ModelError, match=r"NaN or infinite logits in float16: .*--dtype"):
        warm_up(model, torch.float16)


def test_a_model_that_the_engine_dies_of_is_refused_in_one_line(caplog: pytest.LogCaptureFixture) -> None:
    model = tiny("llama")

    def fail(_: object, __: object, named: dict[str, Any]) -> None:
        if "cache" in named:
            raise RuntimeError("sizes 3 and 4\ndon't match")

    model.register_forward_pre_hook(fail, with_kwargs=True)
    with pytest.raises(
        ModelError, match=r"^LlamaForCausalLM can't be served by .*RuntimeError: sizes 3 and 4"
    ) as caught:
        warm_up(model)
    assert "\n" not in str(caught.value)
    # A worker of an earlier test may still look for the Redis that it had.
    assert not [record for record in caplog.records if "listener" not in record.name]


def test_errors_are_measured_by_the_spread_of_the_scores() -> None:
    own = torch.tensor([0.0, 1.0, 2.0, 3.0])
    assert score_error(own, own) == 0
    assert score_error(own + 0.1, own) == pytest.approx(0.1 / math.sqrt(1.25))
    assert score_error(100 * own, 100 * own + 0.1) < 0.001
    assert draw_error(3, own) == 0
    assert draw_error(1, own) == pytest.approx(2 / math.sqrt(1.25))


def test_masked_scores_are_compared_by_their_places() -> None:
    for never in (-math.inf, torch.finfo(torch.float32).min):
        own = torch.tensor([0.0, never, 2.0])
        assert score_error(own, own) == 0
        assert score_error(torch.tensor([0.0, 1.0, 2.0]), own) == math.inf
        assert score_error(torch.tensor([0.0, never, math.nan]), own) == math.inf


def test_prompts_hold_no_special_token() -> None:
    model = tiny("llama", eos_token_id=[3, 4], pad_token_id=5)
    assert {3, 4, 5}.isdisjoint(ordinary_ids(model))
