"""The draw's options in the default engine: resumed, reset, ended and dead, on real models in float64."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers.generation.continuous_batching.requests import FutureRequestState, RequestState

from tests.unit.test_engine_batching import VOCABULARY, loaded, request, run_until_ended
from tokenrelay.worker.engine.contract import GRAMMAR_DEAD_END, NO_TOKEN_LEFT, EngineRequest, RequestFailure
from tokenrelay.worker.engine.transformers.models import load_model
from tokenrelay.worker.engine.transformers.sampling_rows import LiveRequest, PositionKeyedSampler
from tokenrelay.worker.models import weather_model_path
from tokenrelay.worker.sampling.draw import draw_scores
from tokenrelay.worker.sampling.params import SamplingParams
from tokenrelay.worker.sampling.row import Row

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.polled_engine import PolledEngine
    from tokenrelay.worker.engine.transformers.models import LoadedModel

pytestmark = pytest.mark.usefixtures("one_torch_thread")
TOKENS = 24


@pytest.fixture(scope="module")
def weather() -> LoadedModel:
    return load_model(str(weather_model_path()), device="cpu", dtype="float64")


@pytest.fixture(scope="module")
def engine(start_engine: Callable[..., PolledEngine], weather: LoadedModel) -> PolledEngine:
    return start_engine(weather, slots=16)


@pytest.fixture(scope="module")
def tiny(start_engine: Callable[..., PolledEngine]) -> PolledEngine:
    return start_engine(loaded(), slots=8, max_batch_tokens=32)


def striped(vocabulary: int) -> Callable[[Sequence[int]], torch.Tensor]:
    """A token mask that depends on every token so far: two thirds of the vocabulary may follow."""

    def mask(emitted_ids: Sequence[int]) -> torch.Tensor:
        dropped = sum((index + 1) * token_id for index, token_id in enumerate(emitted_ids)) % 3
        return bitmask(token_id for token_id in range(vocabulary) if token_id % 3 != dropped)

    return mask


def bitmask(allowed: Any, words: int = 64) -> torch.Tensor:
    bits = torch.zeros(words * 32, dtype=torch.int64)
    bits[list(allowed)] = 1
    values = (bits.view(words, 32) << torch.arange(32)).sum(dim=1)
    return torch.where(values >> 31 > 0, values - 2**32, values).to(torch.int32)


PLAIN = SamplingParams(temperature=1.5, top_k=0, top_p=1.0, seed=13)


def variants(vocabulary: int, plain: Sequence[int]) -> dict[str, EngineRequest]:
    """A request for each option, and one for all of them. `plain`: what the request without one answers."""
    likely = sorted(set(plain))
    chosen: dict[str, dict[str, Any]] = {
        "min_p": {"min_p": 0.2},
        "logit_bias": {"logit_bias": tuple((token_id, -3.0) for token_id in likely)},
        "repetition_penalty": {"repetition_penalty": 2.5},
        "frequency_penalty": {"frequency_penalty": 2.0},
        "presence_penalty": {"presence_penalty": 2.0},
        "bad_words": {"bad_words": ((likely[0],), *pairwise(plain))},
        "min_tokens": {"min_tokens": TOKENS},
        "token_mask": {},
        "all": {
            "min_p": 0.01,
            "logit_bias": tuple((token_id, 0.5) for token_id in likely),
            "repetition_penalty": 1.3,
            "frequency_penalty": 0.5,
            "presence_penalty": 0.25,
            "bad_words": tuple(pairwise(plain)),
            "min_tokens": TOKENS - 4,
            "top_k": 200,
            "top_p": 0.98,
        },
    }
    return {
        name: replace(
            request(name, replace(PLAIN, **options), prompt=plain[:3], n=TOKENS),
            ignore_eos=name not in ("min_tokens", "all"),
            token_mask=striped(vocabulary) if name in ("token_mask", "all") else None,
        )
        for name, options in chosen.items()
    }


def test_each_option_resumes_with_the_same_tokens_in_any_company(engine: PolledEngine, weather: LoadedModel) -> None:
    """Every option at once in one batch, undisturbed; then each from six random tokens on, in other batches."""
    prompt = tuple(weather.tokenizer("What is the weather today?")["input_ids"])
    plain, _ = run_until_ended(engine, replace(request("plain", PLAIN, prompt=prompt, n=TOKENS), ignore_eos=True))[
        "plain"
    ]
    asked = {name: replace(each, prompt_ids=prompt) for name, each in variants(len(weather.tokenizer), plain).items()}
    asked["min_tokens"] = replace(asked["min_tokens"], sampling=replace(asked["min_tokens"].sampling, temperature=0.0))
    whole = run_until_ended(engine, *asked.values())
    assert len({tuple(tokens) for tokens, _ in whole.values()} | {tuple(plain)}) == len(whole) + 1
    assert len(whole["min_tokens"][0]) >= TOKENS, "greedily it ends after 6 tokens"
    choices = random.Random(5)
    cuts = [(name, cut) for name, (tokens, _) in whole.items() for cut in choices.sample(range(1, len(tokens)), 6)]
    choices.shuffle(cuts)
    resumed = [
        replace(asked[name], engine_id=f"{name}@{cut}", emitted_ids=tuple(whole[name][0][:cut])) for name, cut in cuts
    ]
    answers = run_until_ended(engine, *resumed)
    for name, cut in cuts:
        tokens, end = whole[name]
        assert answers[f"{name}@{cut}"] == (tokens[cut:], end), (name, cut)


def test_a_soft_reset_keeps_the_history(start_engine: Callable[..., PolledEngine], tiny: PolledEngine) -> None:
    """Two answers of 97 tokens in a cache of 128: the scheduler throws one out, and prefills its tokens as a prompt."""
    crowded = start_engine(loaded(), slots=2, kv_cache_tokens=128)
    plain, _ = run_until_ended(tiny, request("plain", PLAIN, n=TOKENS))["plain"]
    for name, asked in variants(VOCABULARY, plain).items():
        pair = [
            replace(
                asked, engine_id=f"{name}{seed}", prompt_ids=(1, 2, 3), max_new_tokens=97, ignore_eos=True,
                sampling=replace(asked.sampling, seed=seed),
            )
            for seed in (1, 2)
        ]  # fmt: skip
        assert run_until_ended(crowded, *pair) == run_until_ended(tiny, *pair)


def outcomes(
    engine: PolledEngine, *requests: EngineRequest
) -> dict[str, tuple[list[int], str | RequestFailure | None]]:
    """As `run_until_ended`, failures included."""
    tokens: dict[str, list[int]] = {each.engine_id: [] for each in requests}
    ends: dict[str, str | RequestFailure | None] = {}
    for each in requests:
        engine.add(each)
    while len(ends) < len(requests):
        for output in engine.outputs(30.0):
            tokens[output.engine_id] += output.token_ids
            if output.is_last:
                ends[output.engine_id] = output.finish_reason or output.error
    return {engine_id: (tokens[engine_id], ends[engine_id]) for engine_id in tokens}


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_a_row_without_a_token_left_fails_alone(tiny: PolledEngine, temperature: float) -> None:
    neighbours = [request(f"near{seed}", replace(PLAIN, seed=seed), n=12) for seed in range(3)]
    expected = outcomes(tiny, *neighbours)
    sampling = replace(PLAIN, temperature=temperature)
    everything = tuple((token_id,) for token_id in range(VOCABULARY))
    dead = replace(
        request("dead", sampling),
        token_mask=lambda emitted: bitmask(range(VOCABULARY) if len(emitted) < 5 else ()),
    )
    barred = request("barred", replace(sampling, bad_words=everything))
    ended = outcomes(tiny, neighbours[0], dead, neighbours[1], barred, neighbours[2])
    assert ended["barred"] == ([], NO_TOKEN_LEFT)
    assert ended["dead"] == (outcomes(tiny, request("alive", sampling, n=5))["alive"][0], GRAMMAR_DEAD_END)
    assert {name: ended[name] for name in expected} == expected


def test_a_stop_token_ends_the_request_and_is_no_token_of_it(
    start_engine: Callable[..., PolledEngine], tiny: PolledEngine
) -> None:
    plain, _ = run_until_ended(tiny, request("plain", PLAIN))["plain"]
    stop, end = plain[9], plain[5]
    stopping = request("stops", replace(PLAIN, stop_token_ids=(stop,)))
    until_stop = plain[: plain.index(stop)]
    assert run_until_ended(tiny, stopping)["stops"] == (until_stop, "stop")
    resumed = replace(stopping, engine_id="resumed", emitted_ids=tuple(until_stop))
    assert run_until_ended(tiny, resumed)["resumed"] == ([], "stop")
    with_eos = start_engine(loaded(frozenset({end})), slots=2)
    first = min(plain.index(stop), plain.index(end))
    both = run_until_ended(with_eos, stopping, replace(stopping, engine_id="ignoring", ignore_eos=True))
    assert both == {"stops": (plain[:first], "stop"), "ignoring": (until_stop, "stop")}


def test_min_tokens_puts_the_end_off_and_no_further(
    start_engine: Callable[..., PolledEngine], tiny: PolledEngine
) -> None:
    plain, _ = run_until_ended(tiny, request("plain"))["plain"]
    end = plain[5]
    engine = start_engine(loaded(frozenset({end})), slots=2)
    first = plain.index(end)
    for min_tokens, reached in ((first, False), (first + 1, True), (12, True)):
        asked = request("asked", SamplingParams(0.0, 0, 1.0, 0, min_tokens=min_tokens))
        tokens, reason = run_until_ended(engine, asked)["asked"]
        assert end not in tokens
        assert (len(tokens) > first) == reached
        assert len(tokens) >= min_tokens
        assert tokens[:first] == plain[:first]
        assert reason in ("stop", "length")
    # Where the model's end of sequence is ignored, nothing is put off.
    ignoring = replace(request("ignoring", SamplingParams(0.0, 0, 1.0, 0, min_tokens=12)), ignore_eos=True)
    assert run_until_ended(engine, ignoring)["ignoring"] == (plain, "length")


@pytest.mark.parametrize("lag", [0, 1])
def test_a_row_has_the_whole_answer_also_where_the_host_is_a_step_behind(lag: int) -> None:
    """Asynchronous batching prepares a step before the last one's token has reached the request's state: it is then
    only in the step's input."""
    prompt, emitted = (4, 4, 5), (7, 8, 7)
    asked = EngineRequest(
        "lagging", prompt, emitted[:1], 9, replace(PLAIN, repetition_penalty=3.0, bad_words=((8, 7, 2),))
    )
    state = RequestState(
        "lagging", [*prompt, *emitted[:1]], logit_processor_kwargs={"live": LiveRequest(asked, frozenset())}
    )
    state.generated_tokens = list(emitted[1 : len(emitted) - lag])
    state.position_offset = len(prompt) + len(emitted)
    sampler, storage = PositionKeyedSampler(), torch.zeros(6, 4, dtype=torch.int32)
    sampler.prepare_tensor_args([FutureRequestState(state, True, {}, 1)], storage)
    raw = torch.randn(1, VOCABULARY, generator=torch.Generator().manual_seed(3))
    drawn = sampler(torch.tensor([emitted[-1]]), raw.clone(), storage)  # type: ignore[arg-type]
    assert torch.equal(drawn, draw_scores(raw, [Row(asked.sampling, prompt, emitted)]))


def test_a_batch_with_adjusted_rows_is_computed_without_a_graph(tiny: PolledEngine) -> None:
    """Whether the graph is right is for a GPU to show; here, which path the runner is given."""
    processor = tiny._manager.batch_processor
    assert processor is not None
    runner, sampler = processor.model_runner, tiny._sampler
    runner.use_cuda_graph_varlen = runner.use_cuda_graph_decode = True
    storage = torch.zeros(6, 4, dtype=torch.int32)
    try:
        for options, graphed in ({"min_p": 0.1}, True), ({"presence_penalty": 1.0}, False), ({"min_tokens": 1}, False):
            live = LiveRequest(request("row", replace(PLAIN, **options)), frozenset())
            state = RequestState("row", [1, 2, 3], position_offset=3, logit_processor_kwargs={"live": live})
            sampler.prepare_tensor_args([FutureRequestState(state, True, {}, 1)], storage)
            assert [runner._get_forward_fn(table)[1] for table in (False, True)] == [graphed, graphed]
    finally:
        runner.use_cuda_graph_varlen = runner.use_cuda_graph_decode = False
        sampler.prepare_tensor_args([], storage)
