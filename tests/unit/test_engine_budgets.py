"""A budget is a limit and no reservation: what a request may use of the KV cache costs nothing until it's used."""

from __future__ import annotations

import threading

from tests.polled_engine import PolledEngine
from tokenrelay.worker.engine.admission import admit
from tokenrelay.worker.engine.contract import EngineRequest
from tokenrelay.worker.engine.transformers.kv_cache import EngineSettings
from tokenrelay.worker.engine.transformers.models import load_model
from tokenrelay.worker.models import weather_model_path
from tokenrelay.worker.sampling.params import SamplingParams
from tokenrelay.worker.text import encode_prompt

SLOTS = 32


def answered(budget: int | None) -> tuple[int, dict[str, list[int]]]:
    """Of as many questions at once as there are slots: the model's steps, and the tokens of each."""
    loaded = load_model(weather_model_path(), device="cpu", dtype="float32")
    steps, all_in = 0, threading.Event()

    def count(*_: object) -> None:
        nonlocal steps
        steps += 1
        all_in.wait()

    engine = PolledEngine(loaded, EngineSettings(slots=SLOTS, kv_cache_tokens=512))
    engine.begin()
    loaded.model.register_forward_hook(count)
    try:
        prompt = tuple(encode_prompt(loaded.tokenizer, "What is the weather today?"))
        most = admit(len(prompt), 0, budget, engine.capabilities.context_tokens)
        assert isinstance(most, int)
        tokens: dict[str, list[int]] = {f"{number}:a": [] for number in range(SLOTS)}
        waiting = set(tokens)
        steps = 0
        for seed, engine_id in enumerate(tokens):
            engine.add(EngineRequest(engine_id, prompt, (), most, SamplingParams(0.8, 0, 1.0, seed)))
        all_in.set()
        while waiting:
            for output in engine.outputs(1.0):
                tokens[output.engine_id] += output.token_ids
                waiting -= {output.engine_id} if output.finish_reason else set()
        return steps, tokens
    finally:
        engine.stop()


def test_a_full_house_without_limits_takes_no_more_steps_than_with_small_ones() -> None:
    """A cache that holds one context: one answer at a time would take 15 times the steps."""
    (steps, tokens), (with_limits, same) = answered(None), answered(16)
    assert tokens == same
    assert abs(steps - with_limits) <= 2  # the first one may find one request, or some
