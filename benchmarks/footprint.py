"""The worker's resident size over two thousand requests, to detect leaks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import psutil

from benchmarks.contenders import Arena
from benchmarks.report import Measurement
from benchmarks.waves import Wave, prompt_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.options import BenchOptions

GROUP: Final = "the worker's memory"
_PART: Final = 250


def measure(options: BenchOptions) -> Iterator[Measurement]:
    """With the bundled model, whose steps are short: a leak would be per request."""
    from transformers import AutoTokenizer

    from tokenrelay.worker.models import weather_model_path

    tokenizer = AutoTokenizer.from_pretrained(weather_model_path())
    parts, part = (3, 4) if options.quick else (8, _PART)
    sizes = []
    with Arena(options) as arena:
        pipeline = arena.pipeline(str(weather_model_path()), "float32")
        for number in range(parts):
            prompts = tuple(prompt_of(tokenizer, 8, number * part + index) for index in range(part))
            pipeline.run(Wave(prompts, 16, 1.0, number))
            sizes.append(_resident_mib())
    settled = sizes[len(sizes) // 4]
    note = f"{settled:.0f} MiB after {parts * part // 4}, {sizes[-1]:.0f} after {parts * part} requests"
    yield Measurement(GROUP, "growth behind the first quarter", "%", ((sizes[-1] / settled - 1) * 100,), "≤", 2.0, note)


def _resident_mib() -> float:
    """Resident size of the engine's process, the largest of the worker's."""
    processes = psutil.Process().children(recursive=True)
    workers = [process for process in processes if "tokenrelay.worker" in process.cmdline()]
    return max(float(process.memory_info().rss) for process in workers) / (1 << 20)
