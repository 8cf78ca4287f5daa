"""`python -m benchmarks.profile`: where a decode step's time goes, under torch.profiler, through the engine that ships.

Shares of the time inside torch's operations, each at its lower quartile: absolute times vary too much on busy machines.
An overloaded machine distorts shares as well, since operations longer than a time slice are always preempted. Python's
time between operations isn't included. The profiler adds a constant to each operation, so the many small ones look more
expensive than they are. OMP_NUM_THREADS=1 excludes threads that wait for each other.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from dataclasses import dataclass
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Final

import torch
from rich.console import Console
from rich.table import Table
from torch._C._profiler import _ExperimentalConfig
from torch.profiler import ProfilerActivity, profile, record_function
from transformers import AttentionInterface

from benchmarks.contenders import KV_CACHE_TOKENS, SLOTS
from benchmarks.waves import prompt_of
from tokenrelay.worker.engine.contract import EngineRequest
from tokenrelay.worker.engine.output_queue import OutputQueue
from tokenrelay.worker.engine.transformers.batching import TransformersEngine
from tokenrelay.worker.engine.transformers.kv_cache import EngineSettings
from tokenrelay.worker.engine.transformers.models import load_model
from tokenrelay.worker.models import weather_model_path
from tokenrelay.worker.sampling.params import SamplingParams

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from torch.autograd.profiler_util import FunctionEvent

ATTENTION: Final = "attention scope"
MATRICES, KERNEL, CUTTING, SAMPLING, CACHE, REST = (
    "matrix products",
    "attention",
    "cutting the batch by request",
    "sampling",
    "KV-cache update",
    "rest",
)
PARTS: Final = (MATRICES, KERNEL, CUTTING, SAMPLING, CACHE, REST)
_PRODUCTS: Final = {
    "aten::linear", "aten::matmul", "aten::mm", "aten::addmm", "aten::bmm", "mkldnn::_linear_pointwise",
}  # fmt: skip
_LIBRARIES: Final = ("aten", "mkldnn")
_CACHE: Final = {"aten::index_copy_", "aten::index_put_", "aten::index_select", "aten::index"}
_SETTLED: Final = 4
"""Tokens that each request has before the profile starts, so that none is in prefill."""


@dataclass(frozen=True, slots=True)
class Load:
    """Run `steps` decode steps with so many concurrent requests."""

    requests: int = SLOTS
    prompt_tokens: int = 40
    steps: int = 4
    temperature: float = 1.0


class Profiled:
    """An engine whose attention is marked, to separate its operations from those of the surrounding layers."""

    def __init__(self, model: str, dtype: str) -> None:
        self._loaded = load_model(model, dtype=dtype)
        self._engine = TransformersEngine(self._loaded, EngineSettings(SLOTS, KV_CACHE_TOKENS))
        # The engine has registered its own attention by now; call it inside a mark.
        AttentionInterface.register("sdpa", _marked(AttentionInterface()["sdpa"]))  # type: ignore[no-untyped-call]
        self.vocabulary = int(self._loaded.model.config.get_text_config().vocab_size)
        self._engine.prepare()
        self._outputs = OutputQueue()
        self._engine.start(self._outputs.deliver)
        with _profiler():  # the first one takes seconds to start
            pass

    def stop(self) -> None:
        self._engine.stop()

    def events(self, load: Load) -> list[FunctionEvent]:
        """torch's operations in the engine's decode steps, of all threads."""
        given = {self._add(load, index): 0 for index in range(load.requests)}
        self._wait(given, _SETTLED)
        with _profiler() as profiler:
            self._receive(given, 0)  # of steps before
            # The first step started before the profile.
            self._wait(given, min(given.values()) + 1 + load.steps)
            # Before the profiler processes its records, which takes a while, during which the engine would step on.
            for engine_id in given:
                self._engine.cancel(engine_id)
        return list(profiler.events() or [])

    def _add(self, load: Load, index: int) -> str:
        prompt_ids = tuple(
            self._loaded.tokenizer(prompt_of(self._loaded.tokenizer, load.prompt_tokens, index))["input_ids"]
        )
        sampling = SamplingParams(load.temperature, 0, 1.0, index)
        budget = min(self._engine.capabilities.context_tokens, KV_CACHE_TOKENS // SLOTS) - len(prompt_ids)
        request = EngineRequest(f"profile-{index}", prompt_ids, (), budget, sampling, ignore_eos=True)
        self._engine.add(request)
        return request.engine_id

    def _wait(self, given: dict[str, int], tokens: int) -> None:
        while min(given.values()) < tokens:
            self._receive(given, 1.0)

    def _receive(self, given: dict[str, int], timeout_s: float) -> None:
        for output in self._outputs.get(timeout_s):
            if output.engine_id in given:
                given[output.engine_id] += len(output.token_ids)
                if output.finish_reason:
                    raise RuntimeError("a request ended within the profile: the context is too short for it")


def _profiler() -> profile:
    # The engine's steps are in a thread of its own.
    everywhere = _ExperimentalConfig(profile_all_threads=True)
    return profile(activities=[ProfilerActivity.CPU], record_shapes=True, experimental_config=everywhere)


def _marked(attention: Callable[..., Any]) -> Callable[..., Any]:
    def marked(*arguments: Any, **named: Any) -> Any:
        with record_function(ATTENTION):
            return attention(*arguments, **named)

    return marked


def part_of(event: FunctionEvent, vocabulary: int) -> str:
    """The part of a step that an operation belongs to, by its outermost caller."""
    outermost = event
    while outermost.cpu_parent is not None and outermost.cpu_parent.name != ATTENTION:
        outermost = outermost.cpu_parent
    name = str(outermost.name)
    if outermost.cpu_parent is not None:
        if name == "aten::scaled_dot_product_attention":
            return KERNEL
        return CACHE if name in _CACHE else CUTTING
    if name in _PRODUCTS:
        return MATRICES
    shapes: Any = outermost.input_shapes or []  # a shape for each argument; torch types it as one
    over_vocabulary = any(shape and shape[-1] == vocabulary for shape in shapes)
    return SAMPLING if over_vocabulary else REST


def shares(events: Iterable[FunctionEvent], vocabulary: int) -> dict[str, dict[str, float]]:
    """Each part's operations by name, most expensive first, with their share of the total time.

    An operation on given shapes counts with the lower quartile of its times, once per run, so that a preempted run
    doesn't dominate.
    """
    found: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for event in events:
        library, _, name = event.name.partition("::")
        if library in _LIBRARIES:
            found[part_of(event, vocabulary), name, str(event.input_shapes)].append(event.self_cpu_time_total)
    times: dict[str, dict[str, float]] = {part: defaultdict(float) for part in PARTS}
    for (part, name, _), measured in found.items():
        times[part][name] += sorted(measured)[len(measured) // 4] * len(measured)
    whole = sum(sum(by_name.values()) for by_name in times.values())
    if not whole:
        raise RuntimeError("the profiler saw no operation")
    dearest = {part: sorted(by_name.items(), key=itemgetter(1), reverse=True) for part, by_name in times.items()}
    return {part: {name: time / whole for name, time in pairs} for part, pairs in dearest.items()}


def table(model: str, dtype: str, load: Load) -> Table:
    profiled = Profiled(model, dtype)
    try:
        parts = shares(profiled.events(load), profiled.vocabulary)
    finally:
        profiled.stop()
    shown = Table("part", "share", "mostly", title=_title(dtype, load), title_justify="left")
    for part, by_name in parts.items():
        mostly = ", ".join(f"{name} {share:.1%}" for name, share in list(by_name.items())[:3])
        shown.add_row(part, f"{sum(by_name.values()):.1%}", mostly)
    return shown


def _title(dtype: str, load: Load) -> str:
    machine = f"{torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"
    kind = "sampled" if load.temperature else "greedy"
    return f"decode, {load.requests} at once, prompts of {load.prompt_tokens}, {kind}; {dtype}, {machine}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.profile")
    parser.add_argument("--model", default=str(weather_model_path()), help="model folder; the bundled one if not given")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--temperature", type=float, default=1.0)
    arguments = parser.parse_args()
    load = Load(steps=arguments.steps, temperature=arguments.temperature)
    Console(width=150).print(table(arguments.model, arguments.dtype, load))


if __name__ == "__main__":
    main()
