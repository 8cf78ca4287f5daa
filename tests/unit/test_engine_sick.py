"""One request whose numbers are NaN or infinite, beside others: it fails, and theirs are the same as without it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers import (
    AttentionInterface,
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from tests.polled_engine import PolledEngine
from tests.unit.test_engine_batching import SHAPE, VOCABULARY, loaded, request
from tokenrelay.worker.engine.contract import INVALID_LOGITS, EngineOutput, EngineRequest, ModelError
from tokenrelay.worker.engine.transformers.kv_cache import EngineSettings
from tokenrelay.worker.engine.transformers.layers.attention import attend_request_by_request
from tokenrelay.worker.engine.transformers.layers.packed_attention import attend_packed
from tokenrelay.worker.engine.transformers.sampling_rows import draw_without_softmax
from tokenrelay.worker.sampling.params import SamplingParams
from tokenrelay.worker.sampling.sampler import encode_params, sample_scores

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from transformers.generation.continuous_batching.model_runner import ModelRunner

pytestmark = pytest.mark.usefixtures("one_torch_thread")
SICK = VOCABULARY - 1
"""A word that no healthy request reads or draws."""


@pytest.fixture(autouse=True)
def _attention_as_it_ships() -> Iterator[None]:
    yield
    attend_request_by_request()


def llama() -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(**SHAPE))


def windowed() -> PreTrainedModel:
    kinds = ["full_attention", "sliding_attention"]
    config = Qwen3Config(**SHAPE, head_dim=8, use_sliding_window=True, sliding_window=16, layer_types=kinds)
    return Qwen3ForCausalLM(config)


def eager() -> PreTrainedModel:
    """transformers has no sdpa for it."""
    return Gemma2ForCausalLM(Gemma2Config(**SHAPE, head_dim=8, query_pre_attn_scalar=8, sliding_window=16))


def made(build: Callable[[], PreTrainedModel], word: int = SICK, value: float = 0.0) -> PreTrainedModel:
    """A model in float64 whose embedding of `word` is `value`, and which never draws SICK."""
    torch.manual_seed(3)
    model = build()
    torch.nn.Module.to(model, torch.float64)
    embeddings: Any = model.get_input_embeddings()
    head: Any = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    head.weight = torch.nn.Parameter(embeddings.weight.detach().clone())  # untied
    bias = torch.zeros(VOCABULARY, dtype=torch.float64)
    bias[SICK] = -1e4
    head.bias = torch.nn.Parameter(bias)
    with torch.no_grad():
        embeddings.weight[word] = value
    return model


def healthy() -> list[EngineRequest]:
    prompts = [tuple((index * 7 + step) % (VOCABULARY - 2) for step in range(3 + index * 9)) for index in range(4)]
    return [
        request(f"healthy-{index}", SamplingParams(0.9 * (index % 2), 0, 1.0, seed=index), prompt)
        for index, prompt in enumerate(prompts)
    ]


def run(
    model: PreTrainedModel, requests: Sequence[EngineRequest], attention: Callable[..., Any] | None = None
) -> dict[str, list[EngineOutput]]:
    """Every output of each request."""
    # 24 tokens a step: longer prompts are prefilled in pieces, beside requests that decode already.
    engine = PolledEngine(loaded(model=model), EngineSettings(slots=8, max_batch_tokens=24))
    if attention is not None:
        AttentionInterface.register("sdpa", attention)
    engine.begin()
    given: dict[str, list[EngineOutput]] = {each.engine_id: [] for each in requests}
    try:
        for each in requests:
            engine.add(each)
        while not all(outputs and outputs[-1].is_last for outputs in given.values()):
            for output in engine.outputs(30.0):
                given[output.engine_id].append(output)
    finally:
        engine.stop()
    return given


def tokens(outputs: Sequence[EngineOutput]) -> list[int]:
    return [token_id for output in outputs for token_id in output.token_ids]


@pytest.mark.parametrize(
    ("build", "attention", "value"),
    [
        pytest.param(llama, None, torch.nan, id="request by request"),
        pytest.param(llama, None, torch.inf, id="infinity"),
        pytest.param(windowed, None, torch.nan, id="sliding window"),
        pytest.param(eager, None, torch.nan, id="eager"),
        pytest.param(eager, None, torch.inf, id="eager, infinity"),
        pytest.param(windowed, attend_packed, torch.nan, id="packed"),
    ],
)
def test_a_sick_word_fails_the_requests_that_hold_it_alone(
    build: Callable[[], PreTrainedModel], attention: Callable[..., Any] | None, value: float
) -> None:
    sick = [
        request("sick-at-once", prompt=(1, SICK)),
        request("sick-in-its-middle", prompt=(*range(20), SICK, *range(30))),
    ]
    without = run(made(build, value=value), healthy(), attention)
    beside = run(made(build, value=value), [*sick[:1], *healthy()[:2], *sick[1:], *healthy()[2:]], attention)
    for each in healthy():
        assert tokens(beside[each.engine_id]) == tokens(without[each.engine_id]), each.engine_id
        assert beside[each.engine_id][-1].finish_reason == "length"
    for each in sick:
        assert beside[each.engine_id] == [EngineOutput(each.engine_id, (), None, INVALID_LOGITS)]


@pytest.mark.parametrize("attention", [None, attend_packed], ids=["request by request", "packed"])
def test_a_request_that_falls_sick_in_decode_keeps_its_tokens_and_its_neighbours_theirs(
    attention: Callable[..., Any] | None,
) -> None:
    falling = request("falling-sick", SamplingParams(0.9, 0, 1.0, seed=99), (9, 8, 7))
    before = run(made(llama), [*healthy(), falling], attention)
    elsewhere = {token_id for each in healthy() for token_id in (*each.prompt_ids, *tokens(before[each.engine_id]))}
    whole = tokens(before["falling-sick"])
    at = next(index for index, token_id in enumerate(whole) if token_id not in {*elsewhere, *falling.prompt_ids})
    beside = run(made(llama, whole[at], torch.nan), [*healthy(), falling], attention)
    for each in healthy():
        assert tokens(beside[each.engine_id]) == tokens(before[each.engine_id])
    # The sick word itself was drawn from valid scores; what follows it isn't.
    assert tokens(beside["falling-sick"]) == whole[: at + 1]
    assert beside["falling-sick"][-1].error == INVALID_LOGITS


def test_a_request_resumed_behind_what_made_it_sick_fails_too() -> None:
    resumed = replace(request("resumed"), emitted_ids=(4, SICK, 5))
    assert run(made(llama, value=torch.nan), [resumed])["resumed"][-1].error == INVALID_LOGITS


def test_a_last_token_drawn_from_invalid_scores_is_no_length() -> None:
    assert run(made(llama, value=torch.nan), [request("one", prompt=(SICK,), n=1)])["one"] == [
        EngineOutput("one", (), None, INVALID_LOGITS)
    ]


@pytest.mark.parametrize("value", [torch.nan, -torch.inf, torch.inf], ids=["NaN", "all -inf", "all inf"])
def test_scores_of_one_row_without_a_finite_one(value: float) -> None:
    model = made(llama)
    head: Any = model.get_output_embeddings()  # type: ignore[no-untyped-call]

    def spoil(_: torch.nn.Module, __: object, scores: torch.Tensor) -> torch.Tensor:
        return scores.index_fill(1, torch.tensor([0]), value) if scores.shape[1] > 3 else scores

    engine_requests = healthy()
    expected = run(model, engine_requests)
    head.register_forward_hook(spoil)
    given = run(model, engine_requests)
    failed = [name for name, outputs in given.items() if outputs[-1].error == INVALID_LOGITS]
    assert failed == ["healthy-0"], "the first row, as long as there are more than three"
    assert all(tokens(given[name]) == tokens(expected[name]) for name in expected if name not in failed)


def test_a_prefill_is_progress_before_its_first_token() -> None:
    model = made(llama)
    at_step: list[int] = []
    engine = PolledEngine(loaded(model=model), EngineSettings(slots=4, max_batch_tokens=8))
    model.register_forward_pre_hook(lambda *_: at_step.append(engine.progress))
    engine.begin()
    try:
        engine.add(request("long", prompt=range(59), n=1))
        assert engine.outputs(30.0)[-1].is_last
        # 8 steps of 8 tokens, each of two layers.
        assert at_step == list(range(0, 16, 2))
    finally:
        engine.stop()


def test_a_model_of_which_every_score_is_nan_is_refused_at_warm_up() -> None:
    model = made(llama)
    model.get_output_embeddings().weight.data.fill_(torch.nan)  # type: ignore[no-untyped-call]
    engine = PolledEngine(loaded(model=model), EngineSettings(slots=2))
    try:
        with pytest.raises(ModelError, match=r"can't be served: .* NaN or infinite logits in float64"):
            engine.prepare()
    finally:
        engine.stop()


KINDS = [
    SamplingParams(0.0, 0, 1.0, seed=1),
    SamplingParams(1.0, 0, 1.0, seed=2),
    SamplingParams(1e-38, 0, 1.0, seed=3),
    SamplingParams(1e38, 0, 1.0, seed=4),
    SamplingParams(1.0, 1, 1.0, seed=5),
    SamplingParams(1.0, 2**31 - 1, 1.0, seed=6),
    SamplingParams(1.0, 0, 1e-6, seed=7),
    SamplingParams(0.7, 40, 0.9, seed=8),
]


@pytest.mark.parametrize("vocabulary", [61, 5000], ids=["sorted whole", "by candidates"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf], ids=["NaN", "inf", "-inf"])
def test_every_kind_of_sampling_keeps_an_invalid_row_invalid_and_the_others_as_they_are(
    value: float, vocabulary: int
) -> None:
    generator = torch.Generator().manual_seed(5)
    logits = torch.randn(len(KINDS), vocabulary, generator=generator) * 5
    params = encode_params([(kind, 3) for kind in KINDS])
    expected = sample_scores(logits, params)
    assert expected.amax(dim=-1).isfinite().all(), "extremes are no failure"
    for row in range(len(KINDS)):
        spoiled = logits.clone()
        spoiled[row] = value
        if value != -torch.inf:  # one entry is enough
            spoiled[row, 1:] = logits[row, 1:]
        scores = sample_scores(spoiled, params)
        assert not scores[row].amax().isfinite()
        others = [each for each in range(len(KINDS)) if each != row]
        assert torch.equal(scores[others], expected[others])


def test_the_draw_without_a_softmax_is_the_argmax() -> None:
    class Runner:
        _sample: Any = None

    runner: Any = Runner()
    draw_without_softmax(runner)
    scores = torch.randn(1, 6, 997)
    scores[0, 3, [5, 7]] = 50.0  # the first of two equal ones
    scores[0, 4, 9] = torch.nan
    drawn = torch.zeros(2, 8, dtype=torch.int32)
    checked: ModelRunner = runner
    checked._sample(scores, drawn)
    assert drawn[0, :6].tolist() == scores[0].argmax(dim=-1).tolist()
    assert drawn[1, :6].view(torch.float32).isfinite().tolist() == [True, True, True, True, False, True]
