"""The default engine on a tiny random Llama in float64, where arithmetic leaves no excuse for a different token."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM, PreTrainedTokenizerFast

from tests.polled_engine import PolledEngine
from tokenrelay.worker.engine.admission import admit
from tokenrelay.worker.engine.contract import CacheUse, EngineOutput, EngineRequest, ModelError
from tokenrelay.worker.engine.transformers.kv_cache import EngineSettings
from tokenrelay.worker.engine.transformers.models import LoadedModel
from tokenrelay.worker.sampling.params import SamplingParams

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from transformers import PreTrainedModel

pytestmark = pytest.mark.usefixtures("one_torch_thread")
VOCABULARY = 61
CONTEXT = 128
SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
    "initializer_range": 0.4,
}
GREEDY = SamplingParams(temperature=0.0, top_k=0, top_p=1.0, seed=0)


def tiny_llama(seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(**SHAPE)
    model = LlamaForCausalLM(config)
    model.double()
    return model


def tiny_mistral() -> MistralForCausalLM:
    torch.manual_seed(1)
    config = MistralConfig(**SHAPE, sliding_window=16)
    model = MistralForCausalLM(config)
    model.double()
    return model


def loaded(eos: frozenset[int] = frozenset(), model: PreTrainedModel | None = None) -> LoadedModel:
    tokenizer = PreTrainedTokenizerFast.__new__(PreTrainedTokenizerFast)  # the engine never touches it
    return LoadedModel(
        model=model or tiny_llama(),
        tokenizer=tokenizer,
        device=torch.device("cpu"),
        dtype=torch.float64,
        context_tokens=CONTEXT,
        eos_token_ids=eos,
        fingerprint="tiny",
    )


@pytest.fixture(scope="module")
def engine(start_engine: Callable[..., PolledEngine]) -> PolledEngine:
    return start_engine(loaded(), slots=8, max_batch_tokens=32)


def run_until_ended(engine: PolledEngine, *requests: EngineRequest) -> dict[str, tuple[list[int], str]]:
    tokens: dict[str, list[int]] = {request.engine_id: [] for request in requests}
    ends: dict[str, str] = {}
    for request in requests:
        engine.add(request)
    deadline = time.monotonic() + 90
    while len(ends) < len(requests):
        assert time.monotonic() < deadline
        for output in engine.outputs(1.0):
            if output.engine_id not in tokens:
                continue  # of a request that the test has cancelled
            tokens[output.engine_id] += output.token_ids
            if output.finish_reason:
                ends[output.engine_id] = output.finish_reason
    return {engine_id: (tokens[engine_id], ends[engine_id]) for engine_id in tokens}


def request(
    name: str, sampling: SamplingParams = GREEDY, prompt: Sequence[int] = (1, 2, 3), n: int = 24
) -> EngineRequest:
    return EngineRequest(name, tuple(prompt), (), n, sampling)


def mixed_requests(prefix: str) -> list[EngineRequest]:
    kinds = [
        GREEDY,
        SamplingParams(1.0, 0, 1.0, seed=7),
        SamplingParams(0.7, 10, 1.0, seed=8),
        SamplingParams(1.3, 0, 0.8, seed=9),
        SamplingParams(0.9, 20, 0.9, seed=2**63 - 1),
        SamplingParams(1.0, 0, 1.0, seed=0),
    ]
    prompts = [tuple((index * 7 + step) % VOCABULARY for step in range(3 + index * 9)) for index in range(len(kinds))]
    return [
        request(f"{prefix}{index}", sampling, prompt)
        for index, (sampling, prompt) in enumerate(zip(kinds, prompts, strict=True))
    ]


def test_engine_mixed_batch_equals_one_at_a_time(engine: PolledEngine) -> None:
    # The longest prompt, 48 tokens at 32 a step, is prefilled in pieces beside its neighbours' decode.
    together = run_until_ended(engine, *mixed_requests("together"))
    for index, alone in enumerate(mixed_requests("alone")):
        assert run_until_ended(engine, alone)[f"alone{index}"] == together[f"together{index}"]
    sampled = [tuple(tokens) for tokens, _ in together.values()]
    assert len(set(sampled)) == len(sampled)


def test_engine_resumes_with_the_same_tokens_at_every_cut(engine: PolledEngine) -> None:
    sampling = SamplingParams(0.9, 0, 0.95, seed=123)
    whole, _ = run_until_ended(engine, request("whole", sampling))["whole"]
    resumed = [replace(request(f"cut{cut}", sampling), emitted_ids=tuple(whole[:cut])) for cut in range(1, len(whole))]
    answers = run_until_ended(engine, *resumed)
    for cut in range(1, len(whole)):
        assert answers[f"cut{cut}"] == (whole[cut:], "length")


def test_engine_soft_reset_keeps_the_tokens(start_engine: Callable[..., PolledEngine]) -> None:
    # Two requests of 100 tokens in a cache of 128: the scheduler throws one out and prefills it again later.
    engine = start_engine(loaded(), slots=2, kv_cache_tokens=128)
    requests = [request(f"crowded{seed}", SamplingParams(1.0, 0, 1.0, seed), n=97) for seed in (1, 2)]
    crowded = run_until_ended(engine, *requests)
    for seed in (1, 2):
        alone = run_until_ended(engine, request(f"roomy{seed}", SamplingParams(1.0, 0, 1.0, seed), n=97))
        assert alone[f"roomy{seed}"] == crowded[f"crowded{seed}"]


def test_engine_without_limits_on_a_small_cache_keeps_every_token(
    start_engine: Callable[..., PolledEngine],
) -> None:
    """Every budget is the whole context and the cache holds two of them: most answers end long before, some don't."""
    requests = [
        request(f"{seed}", SamplingParams(1.0, 0, 1.0, seed), prompt := range(3 + seed * 5 % 40), CONTEXT - len(prompt))
        for seed in range(32)
    ]
    eos = frozenset({5, 17})
    roomy = run_until_ended(start_engine(loaded(eos), slots=32), *requests)
    crowded = run_until_ended(start_engine(loaded(eos), slots=32, kv_cache_tokens=2 * CONTEXT), *requests)
    assert crowded == roomy
    assert {end for _, end in roomy.values()} == {"stop", "length"}


def test_engine_says_how_large_its_cache_is(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    engine = PolledEngine(loaded(), EngineSettings(slots=4, kv_cache_tokens=256))
    engine.begin()
    engine.stop()
    assert (
        "KV cache on cpu: 256 tokens of the 512 that all slots would fill at full context, 0 MiB; "
        "TOKENRELAY_KV_CACHE_TOKENS changes it"
    ) in caplog.messages


def test_engine_tells_how_full_its_cache_is() -> None:
    engine = PolledEngine(loaded(), EngineSettings(slots=2, kv_cache_tokens=256))
    assert engine.cache_use() is None
    engine.begin()
    try:
        assert engine.cache_use() == CacheUse(256, 0.0), "as the pinned transformers has it"
        engine.add(request("held", n=120))
        assert engine.outputs(30.0)
        use = engine.cache_use()
        assert use is not None
        assert 0 < use.used_ratio < 1
    finally:
        engine.stop()
    assert engine.cache_use() is None


def test_engine_greedy_equals_generate(engine: PolledEngine) -> None:
    prompt = torch.tensor([[5, 9, 33, 2]])
    expected = tiny_llama().generate(  # type: ignore[misc]
        prompt, do_sample=False, max_new_tokens=20, attention_mask=torch.ones_like(prompt)
    )
    answer = run_until_ended(engine, request("greedy", prompt=(5, 9, 33, 2), n=20))["greedy"]
    assert answer == (expected[0, 4:].tolist(), "length")


def test_engine_keeps_to_a_sliding_window() -> None:
    engine = PolledEngine(loaded(model=tiny_mistral()), EngineSettings(slots=3, max_batch_tokens=24))
    engine.begin()
    try:
        prompts = [tuple((start * 5 + step * 3) % VOCABULARY for step in range(40)) for start in range(3)]
        answers = run_until_ended(engine, *[request(f"{i}", prompt=prompt) for i, prompt in enumerate(prompts)])
        assert engine.capabilities.context_tokens == CONTEXT
    finally:
        engine.stop()
    for index, prompt in enumerate(prompts):
        ids = torch.tensor([prompt])
        expected = tiny_mistral().generate(  # type: ignore[misc]
            ids, do_sample=False, max_new_tokens=24, attention_mask=torch.ones_like(ids)
        )
        assert answers[f"{index}"] == (expected[0, 40:].tolist(), "length")


def test_engine_eos_stops_and_is_not_emitted(engine: PolledEngine, start_engine: Callable[..., PolledEngine]) -> None:
    plain, _ = run_until_ended(engine, request("plain"))["plain"]
    end = plain[5]
    until_end = plain[: plain.index(end)]
    engine = start_engine(loaded(frozenset({end})), slots=2)
    assert run_until_ended(engine, request("ends"))["ends"] == (until_end, "stop")
    ignoring = replace(request("goes-on"), ignore_eos=True)
    assert run_until_ended(engine, ignoring)["goes-on"] == (plain, "length")
    resumed = replace(request("ends-at-once"), emitted_ids=tuple(until_end))
    assert run_until_ended(engine, resumed)["ends-at-once"] == ([], "stop")


def test_engine_full_budget_on_resume_ends_without_a_step(engine: PolledEngine) -> None:
    engine.add(replace(request("cancelled", n=2), emitted_ids=(4, 5)))
    engine.cancel("cancelled")
    done = replace(request("done", n=2), emitted_ids=(4, 5))
    assert run_until_ended(engine, done)["done"] == ([], "length")


def test_engine_cancel_frees_the_slot_two_steps_later_and_drops_late_tokens() -> None:
    model = loaded()
    steps: list[object] = []
    going_on, stopped = threading.Event(), threading.Event()
    going_on.set()

    def step(*_: object) -> None:
        steps.append(None)
        if not going_on.is_set():
            stopped.set()
            going_on.wait(60)

    model.model.register_forward_pre_hook(step)
    engine = PolledEngine(model, EngineSettings(slots=1))
    engine.begin()
    try:
        engine.add(request("first", n=120))
        while not engine.outputs(1.0):
            pass
        # The cancel comes in the middle of a step, so that no step can pass unnoticed between cancel and count.
        going_on.clear()
        assert stopped.wait(60)
        engine.outputs(0.0)  # of the steps before
        engine.add(request("second", n=3))
        engine.cancel("first")
        cancelled_at = len(steps)
        going_on.set()
        after: list[EngineOutput] = []
        while not (after and after[-1].finish_reason):
            after += engine.outputs(1.0)
        assert {output.engine_id for output in after} == {"second"}
        # Two steps are promised to the slot, and the second request's three tokens take three.
        assert len(steps) - cancelled_at <= 2 + 3
    finally:
        going_on.set()
        engine.stop()


@pytest.mark.parametrize("lost", ["before the manager's addition", "drained without the addition"])
def test_engine_cancel_while_it_is_added_leaves_nothing_running(
    start_engine: Callable[..., PolledEngine], lost: str
) -> None:
    """The manager is told again; it would run the request to its budget, unseen, and the slot's next one would wait."""
    engine = start_engine(loaded(), slots=1)
    manager = engine._manager
    add_request, cancel_request, cancelled = manager.add_request, manager.cancel_request, list[str]()

    def add_late(*arguments: Any, **named: Any) -> object:
        if not cancelled and lost.startswith("before"):
            engine.cancel("cancelled")
        return add_request(*arguments, **named)

    def lose_the_first(request_id: str) -> None:
        """As the manager does with a cancellation of a request that it doesn't know yet."""
        cancelled.append(request_id)
        if len(cancelled) > 1:
            cancel_request(request_id)

    manager.add_request, manager.cancel_request = add_late, lose_the_first  # type: ignore[method-assign, assignment]
    engine.add(request("cancelled", n=120))
    engine.cancel("cancelled")
    assert run_until_ended(engine, request("next", n=3))["next"][1] == "length"
    assert len(cancelled) >= 2


def test_engine_refuses_an_id_twice_and_what_was_not_admitted(engine: PolledEngine) -> None:
    engine.add(request("twice", n=100))
    with pytest.raises(ValueError, match="already"):
        engine.add(request("twice"))
    engine.cancel("twice")
    with pytest.raises(ValueError, match="admitted"):
        engine.add(request("too-much", n=CONTEXT))


def test_engine_context_is_what_an_empty_cache_holds(start_engine: Callable[..., PolledEngine]) -> None:
    engine = start_engine(loaded(), slots=4, kv_cache_tokens=64)
    assert engine.capabilities.context_tokens == 64
    budget = admit(10, 0, 1000, engine.capabilities.context_tokens)
    assert isinstance(budget, int)
    assert budget == 54
    tokens, end = run_until_ended(engine, request("cut", prompt=range(10), n=budget))["cut"]
    assert (len(tokens), end) == (54, "length")


def test_engine_prepares_without_delivering_anything() -> None:
    engine = PolledEngine(loaded(), EngineSettings(slots=2))
    try:
        engine.prepare()
        engine.begin()
        assert run_until_ended(engine, request("first", n=3))["first"][1] == "length"
        assert engine.outputs(0.0) == []
    finally:
        engine.stop()


def test_engine_that_does_not_fit_says_the_numbers() -> None:
    with pytest.raises(ModelError, match=r"not enough memory for the KV cache: 1000000000000 tokens need \d+ MiB"):
        PolledEngine(loaded(), EngineSettings(kv_cache_tokens=10**12))
