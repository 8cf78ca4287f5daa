"""Packed linear layers: the same numbers, the same weights back, and models that don't bear them left alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.polled_engine import PolledEngine
from tests.unit.test_engine_batching import SHAPE, loaded, request, run_until_ended
from tokenrelay.worker.engine.transformers.kv_cache import EngineSettings
from tokenrelay.worker.engine.transformers.layers import linear
from tokenrelay.worker.engine.transformers.layers.linear import PackedLinear, pack_linears

ROUNDING = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}
PACKED = [dtype for dtype in ROUNDING if linear._can_pack(torch.nn.Linear(1, 1, dtype=dtype))]

pytestmark = pytest.mark.skipif(torch.float32 not in PACKED, reason="this torch is built without oneDNN")


def llama(dtype: torch.dtype, **shape: Any) -> LlamaForCausalLM:
    torch.manual_seed(3)
    made = LlamaForCausalLM(LlamaConfig(**{**SHAPE, **shape}))
    torch.nn.Module.to(made, dtype)
    return made


@pytest.mark.parametrize("dtype", PACKED, ids=str)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [(1,), (32,), (100,), (2, 7)], ids=str)
def test_a_packed_layer_gives_what_the_layer_gives(dtype: torch.dtype, bias: bool, rows: tuple[int, ...]) -> None:
    torch.manual_seed(1)
    layer = torch.nn.Linear(96, 40, bias=bias, dtype=dtype)
    given = torch.randn(*rows, 96, dtype=dtype)
    with torch.no_grad():
        expected, packed = layer(given), PackedLinear(layer)(given)
    assert packed.dtype == dtype
    torch.testing.assert_close(packed, expected, rtol=ROUNDING[dtype], atol=ROUNDING[dtype])


def test_no_rows_are_no_rows() -> None:
    # A step in which every request is still in prefill asks the output layer for nothing.
    assert PackedLinear(torch.nn.Linear(8, 5))(torch.empty(1, 0, 8)).shape == (1, 0, 5)


@pytest.mark.parametrize("dtype", PACKED, ids=str)
def test_a_packed_weight_can_be_read_bit_for_bit(dtype: torch.dtype) -> None:
    layer = torch.nn.Linear(96, 40, dtype=dtype)
    assert torch.equal(PackedLinear(layer).weight, layer.weight)


@pytest.mark.parametrize("tied", [False, True])
def test_a_models_linear_layers_are_packed_and_its_embedding_stays(tied: bool) -> None:
    model = llama(torch.float32, tie_word_embeddings=tied, attention_bias=True)
    embedding = model.model.embed_tokens.weight
    assert pack_linears(model) == 2 * 7 + 1
    assert not any(type(module) is torch.nn.Linear for module in model.modules())
    assert model.model.embed_tokens.weight is embedding
    assert torch.equal(model.lm_head.weight, embedding) == tied
    assert pack_linears(model) == 0


def test_a_layer_in_two_places_is_packed_once() -> None:
    model = llama(torch.float32)
    model.model.layers[1].mlp.up_proj = model.model.layers[0].mlp.up_proj
    assert pack_linears(model) == 2 * 7
    assert model.model.layers[1].mlp.up_proj is model.model.layers[0].mlp.up_proj


def test_the_engine_runs_on_packed_layers() -> None:
    prompts = [[(start * 11 + step * 3) % 61 for step in range(length)] for start, length in enumerate((1, 40, 17))]
    answers = []
    for pack in (False, True):
        model = llama(torch.float32)
        if pack:
            assert pack_linears(model)
        # 24 tokens a step: the longer prompt takes steps in which nothing is drawn.
        engine = PolledEngine(loaded(model=model), EngineSettings(slots=4, max_batch_tokens=24))
        engine.begin()
        try:
            answers.append(run_until_ended(engine, *[request(f"{i}", prompt=each) for i, each in enumerate(prompts)]))
        finally:
            engine.stop()
    assert answers[0] == answers[1]


class Looking(torch.nn.Module):
    """A model that looks at one of its layers' weights, and that can be told to refuse `use_cache`."""

    def __init__(self, *, refuses: bool = False) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(4, 8)
        self.hidden = torch.nn.Linear(8, 8)
        self.out = torch.nn.Linear(8, 4)
        self.refuses = refuses

    def forward(self, input_ids: torch.Tensor, **given: Any) -> torch.Tensor:
        if self.refuses and given:
            raise TypeError("forward() got an unexpected keyword argument")
        hidden: torch.Tensor = self.out(self.hidden(self.embedding(input_ids)).to(self.out.weight.dtype))
        return hidden


def test_a_layer_that_is_looked_at_stays_what_it_was() -> None:
    model, ids = Looking(), torch.tensor([[1, 2]])
    out, before = model.out, model(ids)
    assert pack_linears(model) == 1
    assert model.out is out
    assert isinstance(model.hidden, PackedLinear)
    torch.testing.assert_close(model(ids), before)


def test_a_model_that_can_not_be_tried_is_left_as_it_was() -> None:
    model = Looking(refuses=True)
    layers = model.hidden, model.out
    assert pack_linears(model) == 0
    assert (model.hidden, model.out) == layers


def test_layers_stay_what_they_are_where_packing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(given: torch.nn.Linear) -> PackedLinear:
        raise RuntimeError("no such operator")

    monkeypatch.setattr(linear, "PackedLinear", refuse)
    model = llama(torch.float32)
    head = model.lm_head
    assert pack_linears(model) == 0
    assert model.lm_head is head


def test_weights_of_a_kind_of_their_own_are_left_alone() -> None:
    class Quantised(torch.nn.Parameter):
        pass

    model = llama(torch.float32)
    model.lm_head.weight = Quantised(model.lm_head.weight.data)
    assert pack_linears(model) == 2 * 7


def test_float64_has_no_packed_products() -> None:
    assert pack_linears(llama(torch.float64)) == 0
