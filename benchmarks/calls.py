"""A caller's latencies besides the model's: submit, first token, and delivery of each token to a blocked reader."""

from __future__ import annotations

import argparse
import statistics
import time
from typing import TYPE_CHECKING, Final

from benchmarks.children import Child, Message, answer_lines
from benchmarks.contenders import Arena
from benchmarks.report import Measurement
from benchmarks.waves import Wave, prompt_of
from tests.redis_servers import RedisServer
from tokenrelay.producer import Producer
from tokenrelay.worker.models import weather_model_path

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.options import BenchOptions

GROUP: Final = "what a caller waits for"
_WARM_UPS: Final = 3
_BATCH: Final = 1000
_ONE_BY_ONE: Final = 200


def measure(options: BenchOptions) -> Iterator[Measurement]:
    yield from _first_and_every_token(options)
    yield from _submits(options)


def _first_and_every_token(options: BenchOptions) -> Iterator[Measurement]:
    """Pairs of one request to an idle worker and the same to the engine alone.

    With the bundled model, whose prefill takes 2 ms: a larger model's varies by more than the difference to measure.
    """
    from transformers import AutoTokenizer

    model = str(weather_model_path())
    tokenizer = AutoTokenizer.from_pretrained(model)
    pairs, overheads_ms, seen_ms = 3 if options.quick else 30 * options.rounds, [], []
    with Arena(options) as arena, Child("benchmarks.calls", log=options.folder / "log.txt") as caller:
        alone, served = arena.engine_alone(model, "float32"), arena.pipeline(model, "float32").target["model"]
        for number in range(pairs + _WARM_UPS):
            wave = Wave((prompt_of(tokenizer, 8, number),), 16, 0.0, number)
            engine = alone.run(wave)
            found = caller.ask(url=arena.redis().url, model=served, **wave.message())
            if number >= _WARM_UPS:
                overheads_ms.append(found["first_token_s"] * 1000 - engine.ttft_ms)
                seen_ms.append(statistics.median(found["seen_s"]) * 1000)
    name = "submit to first token, less the engine's own"
    yield Measurement(GROUP, name, "ms", tuple(overheads_ms), "≤", 15.0, "idle worker, bundled model")
    yield Measurement(GROUP, "appended to seen by a blocked reader", "ms", tuple(seen_ms), "≤", 2.0)


def _submits(options: BenchOptions) -> Iterator[Measurement]:
    folder = options.folder / "submit"
    folder.mkdir()
    server = RedisServer(folder)
    rates, spent_us = [], []
    try:
        with server.client() as client, Producer(server.url) as producer:
            for _ in range(options.rounds + 1):
                client.flushall()
                prompts = [f"What is the weather on day {number}?" for number in range(_BATCH)]
                began = time.perf_counter()
                producer.submit_many(prompts, max_new_tokens=64)
                rates.append(_BATCH / (time.perf_counter() - began))
                began = time.thread_time()
                for prompt in prompts[:_ONE_BY_ONE]:
                    producer.submit(prompt, max_new_tokens=64)
                spent_us.append((time.thread_time() - began) / _ONE_BY_ONE * 1e6)
    finally:
        server.stop()
    yield Measurement(GROUP, "submit_many", "requests/s", tuple(rates[1:]), "≥", 5000.0, f"{_BATCH} a batch")
    yield Measurement(GROUP, "submit of one request", "µs of CPU time", tuple(spent_us[1:]), note="the producer's")


class Caller:
    """One producer for all calls, as in an application."""

    def __init__(self) -> None:
        self._producer: Producer | None = None

    def answer(self, message: Message) -> Message:
        wave = Wave.of(message)
        self._producer = self._producer or Producer(message["url"])
        chosen = {"model": message["model"], "max_new_tokens": wave.new_tokens}
        began = time.perf_counter()
        generation = self._producer.submit(wave.prompts[0], **chosen, temperature=0.0, ignore_eos=True)
        first_token_s, seen_s = 0.0, []
        for token in generation:
            seen_s.append(time.time() - token.at_us / 1e6)
            first_token_s = first_token_s or time.perf_counter() - began
        return {"first_token_s": first_token_s, "seen_s": seen_s}


if __name__ == "__main__":
    argparse.ArgumentParser().parse_args()
    answer_lines(Caller().answer)
