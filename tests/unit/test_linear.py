"""Packed linear layers: the same numbers, the same weights back, and models that don't bear them left alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.unit.test_engine_batching import SHAPE, loaded, request, run_until_ended
from tokenrelay.worker.engine import EngineSettings, TransformersEngine, linear
from tokenrelay.worker.engine.linear import PackedLinear, pack_linears, unpack_linears

ROUNDING = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}
PACKED = [dtype for dtype in ROUNDING if linear._can_pack(torch.zeros(1, dtype=dtype))]

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
@pytest.mark.parametrize("tied", [False, True])
def test_weights_come_back_bit_for_bit(dtype: torch.dtype, tied: bool) -> None:
    model = llama(dtype, tie_word_embeddings=tied, attention_bias=True)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert pack_linears(model) == 2 * 7 + 1
    assert not any(type(module) is torch.nn.Linear for module in model.modules())
    assert pack_linears(model) == 0
    unpack_linears(model)
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_the_engine_runs_on_packed_layers() -> None:
    prompts = [[(start * 11 + step * 3) % 61 for step in range(length)] for start, length in enumerate((1, 40, 17))]
    answers = []
    for pack in (False, True):
        model = llama(torch.float32)
        if pack:
            assert pack_linears(model)
        # 24 tokens a step: the longer prompt takes steps in which nothing is drawn.
        engine = TransformersEngine(loaded(model=model), EngineSettings(slots=4, max_batch_tokens=24))
        engine.start()
        try:
            answers.append(run_until_ended(engine, *[request(f"{i}", prompt=each) for i, each in enumerate(prompts)]))
        finally:
            engine.stop()
    assert answers[0] == answers[1]


def test_a_model_that_looks_at_its_weights_is_left_as_it_was() -> None:
    class Looking(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = torch.nn.Embedding(4, 8)
            self.out = torch.nn.Linear(8, 4)

        def forward(self, input_ids: torch.Tensor, **_: Any) -> torch.Tensor:
            embedded = self.embedding(input_ids).to(self.out.weight.dtype)
            made: torch.Tensor = self.out(embedded)
            return made

    model, ids = Looking(), torch.tensor([[1, 2]])
    before = model(ids)
    assert pack_linears(model) == 0
    assert type(model.out) is torch.nn.Linear
    assert torch.equal(model(ids), before)


def test_layers_stay_what_they_are_where_packing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(given: torch.nn.Linear) -> PackedLinear:
        raise RuntimeError("no such operator")

    monkeypatch.setattr(linear, "PackedLinear", refuse)
    model = llama(torch.float32)
    assert pack_linears(model) == 0
    assert type(model.lm_head) is torch.nn.Linear


def test_float64_has_no_packed_products() -> None:
    assert pack_linears(llama(torch.float64)) == 0
