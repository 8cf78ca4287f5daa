"""The engine alone, in a process without Redis: the baseline for the pipeline's rate."""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING

from benchmarks.children import Message, answer_lines
from benchmarks.waves import Outcome, Wave
from tokenrelay.worker.engine.contract import EngineRequest
from tokenrelay.worker.engine.output_queue import OutputQueue
from tokenrelay.worker.engine.transformers.batching import TransformersEngine
from tokenrelay.worker.engine.transformers.kv_cache import EngineSettings
from tokenrelay.worker.engine.transformers.models import load_model
from tokenrelay.worker.sampling.params import SamplingParams

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class EngineAlone:
    """Starts an engine and runs waves on it."""

    def __init__(self, engine: TransformersEngine, tokenizer: PreTrainedTokenizerBase) -> None:
        self._engine = engine
        self._outputs = OutputQueue()
        engine.start(self._outputs.deliver)
        self._tokenizer = tokenizer
        self._count = 0

    def run(self, wave: Wave) -> Outcome:
        encoded = [tuple(self._tokenizer(prompt)["input_ids"]) for prompt in wave.prompts]
        began = time.perf_counter()
        waiting = {self._add(wave, index, prompt_ids) for index, prompt_ids in enumerate(encoded)}
        tokens = 0
        firsts: dict[str, float] = {}
        while waiting:
            for output in self._outputs.get(1.0):
                tokens += len(output.token_ids)
                if output.token_ids:
                    firsts.setdefault(output.engine_id, time.perf_counter() - began)
                if output.finish_reason:
                    waiting.discard(output.engine_id)
        return Outcome(tokens, time.perf_counter() - began, tuple(firsts.values()))

    def _add(self, wave: Wave, index: int, prompt_ids: tuple[int, ...]) -> str:
        self._count += 1
        sampling = SamplingParams(wave.temperature, 0, 1.0, wave.seed + index)
        request = EngineRequest(str(self._count), prompt_ids, (), wave.new_tokens, sampling, ignore_eos=True)
        self._engine.add(request)
        return request.engine_id


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--dtype", required=True)
    parser.add_argument("--slots", type=int, required=True)
    parser.add_argument("--kv-cache-tokens", type=int, required=True)
    arguments = parser.parse_args()
    loaded = load_model(arguments.model, dtype=arguments.dtype)
    engine = TransformersEngine(loaded, EngineSettings(arguments.slots, arguments.kv_cache_tokens))
    engine.prepare()
    alone = EngineAlone(engine, loaded.tokenizer)

    def answer(message: Message) -> Message:
        return alone.run(Wave.of(message)).message()

    try:
        answer_lines(answer)
    finally:
        engine.stop()


if __name__ == "__main__":
    main()
