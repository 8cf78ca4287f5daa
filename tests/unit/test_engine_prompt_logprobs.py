"""Log-probabilities of prompts in the default engine, on tiny models in float64, beside the model's forward pass."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from tests.families.folders import tiny_config, tiny_model
from tests.polled_engine import PolledEngine
from tests.unit.test_engine_batching import CONTEXT, GREEDY, VOCABULARY, loaded, request, tiny_llama
from tokenrelay.worker.engine.transformers.kv_cache import EngineSettings
from tokenrelay.worker.sampling.params import SamplingParams

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import PreTrainedModel

    from tokenrelay.worker.engine.contract import EngineOutput, EngineRequest
    from tokenrelay.worker.sampling.logprobs import Logprobs

PROMPT = tuple((7 * place + place * place) % VOCABULARY for place in range(75))
"""Longer than a step takes: it is prefilled in three parts."""
SAMPLED = SamplingParams(1.3, 20, 0.9, seed=4, repetition_penalty=1.7, logit_bias=((3, 5.0),))


def running(model: PreTrainedModel) -> Iterator[PolledEngine]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    engine = PolledEngine(loaded(model=model), EngineSettings(slots=4, max_batch_tokens=32))
    engine.begin()
    yield engine
    engine.stop()
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return tiny_llama()


@pytest.fixture(scope="module")
def engine(model: PreTrainedModel) -> Iterator[PolledEngine]:
    yield from running(model)


def scoring(name: str, top: int | None, prompt: tuple[int, ...] = PROMPT, n: int = 8) -> EngineRequest:
    return replace(request(name, SAMPLED, prompt, n), prompt_logprobs=top)


def collect(engine: PolledEngine, *requests: EngineRequest) -> dict[str, list[EngineOutput]]:
    found: dict[str, list[EngineOutput]] = {each.engine_id: [] for each in requests}
    for each in requests:
        engine.add(each)
    while not all(outputs and outputs[-1].is_last for outputs in found.values()):
        for output in engine.outputs(30.0):
            found[output.engine_id].append(output)
    return found


def forward_logprobs(model: PreTrainedModel, prompt: tuple[int, ...], top: int) -> list[Logprobs]:
    """Those of a plain forward pass."""
    attention = model.config._attn_implementation
    model.set_attn_implementation("eager")
    with torch.no_grad():
        scores = model(input_ids=torch.tensor([prompt]), use_cache=False).logits[0].log_softmax(dim=-1)
    model.set_attn_implementation(attention)
    expected = []
    for row, token_id in zip(scores, prompt[1:], strict=False):
        values, ids = row.topk(top)
        expected.append(((token_id, float(row[token_id])), *zip(ids.tolist(), values.tolist(), strict=True)))
    return expected


def assert_equal(found: tuple[Logprobs, ...] | None, expected: list[Logprobs]) -> None:
    assert found is not None
    assert [[token_id for token_id, _ in each] for each in found] == [[each_id for each_id, _ in e] for e in expected]
    values = [value for each in found for _, value in each]
    assert values == pytest.approx(
        [value for each in expected for _, value in each], rel=2e-5, abs=1e-5
    )  # RMSNorm rounds to float32


@pytest.mark.parametrize("top", [0, 3, 20])
def test_they_are_those_of_a_forward_pass_whatever_the_draw_does(
    engine: PolledEngine, model: PreTrainedModel, top: int
) -> None:
    """A prompt of 75 tokens, 32 a step, beside requests that decode, and one whose prompt is scored too."""
    short = PROMPT[5:16]
    asked = [request("near", GREEDY), scoring("long", top), scoring("short", 2, short), request("far", SAMPLED)]
    found = collect(engine, *asked)
    assert_equal(found["long"][0].prompt_logprobs, forward_logprobs(model, PROMPT, top))
    assert_equal(found["short"][0].prompt_logprobs, forward_logprobs(model, short, 2))
    others = [output for name in ("near", "far") for output in found[name]] + found["long"][1:] + found["short"][1:]
    assert {output.prompt_logprobs for output in others} == {None}


def test_the_answer_is_the_same_without_them(engine: PolledEngine) -> None:
    def answer(name: str, top: int | None) -> list[int]:
        outputs = collect(engine, scoring(name, top))[name]
        return [token_id for output in outputs for token_id in output.token_ids]

    assert answer("with", 5) == answer("without", None)


def test_a_prefix_that_is_cached_is_computed_again(engine: PolledEngine, model: PreTrainedModel) -> None:
    """No hidden states are computed for the blocks that a request shares with another."""
    collect(engine, request("before", GREEDY, PROMPT))
    found = collect(engine, scoring("again", 1))["again"]
    assert_equal(found[0].prompt_logprobs, forward_logprobs(model, PROMPT, 1))


def test_a_prompt_of_one_token_has_none(engine: PolledEngine) -> None:
    assert collect(engine, scoring("one", 1, (5,)))["one"][0].prompt_logprobs == ()


def test_a_soft_reset_reports_them_once(model: PreTrainedModel) -> None:
    """A cache that is too small for both requests' answers: one is put back, and prefilled again."""
    engine = PolledEngine(loaded(model=model), EngineSettings(slots=2, max_batch_tokens=32, kv_cache_tokens=160))
    engine.begin()
    try:
        found = collect(engine, scoring("a", 2, PROMPT, n=50), scoring("b", 2, PROMPT[:70], n=50))
    finally:
        engine.stop()
    for name, prompt in (("a", PROMPT), ("b", PROMPT[:70])):
        first, *later = found[name]
        assert_equal(first.prompt_logprobs, forward_logprobs(model, prompt, 2))
        assert {output.prompt_logprobs for output in later} == {None}


@pytest.mark.parametrize("family", ["gemma2", "granite", "cohere", "gpt2", "qwen3_moe"])
def test_what_a_model_does_to_its_scores_is_done_to_a_prompts(family: str) -> None:
    """Gemma 2 caps them, Granite and Cohere scale them; GPT-2 names its decoder otherwise, and a mixture of experts has
    more outputs."""
    changes: dict[str, Any] = {"cohere": {"logit_scale": 0.3}, "granite": {"logits_scaling": 3.0}}.get(family, {})
    config = tiny_config(family, **changes)
    config._experts_implementation = "eager"  # the others have no float64
    model = tiny_model(config).double()
    prompt = tuple(place % 17 + 1 for place in range(40))
    for engine in running(model):
        found = collect(engine, scoring("asked", 3, prompt, n=2))["asked"]
        assert_equal(found[0].prompt_logprobs, forward_logprobs(model, prompt, 3))
    assert len(prompt) + 2 < CONTEXT
