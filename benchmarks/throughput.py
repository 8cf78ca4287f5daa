"""Tokens per second of the engine alone, the whole pipeline and two alternatives, in turns within each round."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from benchmarks.contenders import Arena, Metered
from benchmarks.report import Measurement
from benchmarks.waves import Wave, prompt_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from transformers import PreTrainedTokenizerBase

    from benchmarks.contenders import Contender
    from benchmarks.options import BenchOptions
    from benchmarks.waves import Outcome

ALONE, RELAY, STOCK, SERVE = "engine alone", "tokenrelay", "stock RQ worker", "transformers serve"
VLLM: Final = "vLLM"
_ALL_SLOTS: Final = 32
_WARM_UP: Final = (40, 8)
"""Tokens of each prompt and each answer of the unmeasured wave before every measured one.

It equalizes conditions: a contender that just ran is faster than an idle one, especially with three processes.
"""
_WARM_UP_SEED: Final = 500
_STOCK_REQUESTS: Final = 4
"""Requests in a wave for the stock worker, which runs one at a time: its rate doesn't depend on the number queued."""


@dataclass(frozen=True, slots=True)
class Shape:
    """One load and its contenders. `against`: the target for tokenrelay's rate over theirs; 0: no target."""

    concurrent: int
    prompt_tokens: int
    temperature: float
    against: dict[str, float]
    new_tokens: int = 64

    @property
    def group(self) -> str:
        kind = "sampled" if self.temperature else "greedy"
        return f"{self.concurrent} at once, prompts of {self.prompt_tokens}, {kind}"


SHAPES: Final = (
    Shape(1, 40, 0.0, {ALONE: 0.97, STOCK: 0.0}),
    Shape(8, 40, 0.0, {ALONE: 0.97, STOCK: 0.0}),
    Shape(32, 40, 0.0, {ALONE: 0.97, STOCK: 8.0, SERVE: 1.05, VLLM: 0.0}),
    Shape(32, 40, 1.0, {ALONE: 0.97}),
    Shape(32, 256, 0.0, {ALONE: 0.97, SERVE: 2.0, VLLM: 0.0}),
    Shape(32, 256, 1.0, {ALONE: 0.97}),
)
QUICK: Final = (Shape(2, 8, 0.0, {ALONE: 0.0, STOCK: 0.0, SERVE: 0.0}, new_tokens=8),)


def measure(options: BenchOptions) -> Iterator[Measurement]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(options.model)
    shapes = chosen_shapes(options.shapes, quick=options.quick)
    with Arena(options) as arena:
        contenders = _contenders(arena, {name for shape in shapes for name in shape.against})
        for shape in shapes:
            yield from _measure_shape(shape, contenders, tokenizer, options.rounds)


def chosen_shapes(texts: Sequence[str], *, quick: bool) -> tuple[Shape, ...]:
    """The loads whose name contains one of `texts`; empty: all. Raises ValueError for a text that matches none."""
    shapes = QUICK if quick else SHAPES
    for text in texts:
        if not any(text in shape.group for shape in shapes):
            raise ValueError(f"{text!r} is in none of: {'; '.join(shape.group for shape in shapes)}")
    return tuple(shape for shape in shapes if not texts or any(text in shape.group for text in texts))


def _contenders(arena: Arena, wanted: set[str]) -> dict[str, Contender]:
    alone = arena.engine_alone()
    started: dict[str, Contender] = {ALONE: Metered(alone, (alone.child.pid,))}
    relay = arena.pipeline()
    started[RELAY] = Metered(relay, arena.pids())
    if STOCK in wanted:
        started[STOCK] = arena.stock_rq()
    if SERVE in wanted:
        if serve := arena.transformers_serve():
            started[SERVE] = serve
        else:
            print("transformers serve isn't installed, so it's left out: pip install 'transformers[serving]'")
    if VLLM in wanted and (vllm := arena.vllm()):
        started[VLLM] = vllm
    return started


def _measure_shape(
    shape: Shape, contenders: dict[str, Contender], tokenizer: PreTrainedTokenizerBase, rounds: int
) -> Iterator[Measurement]:
    names = [name for name in (ALONE, RELAY, STOCK, SERVE, VLLM) if name == RELAY or name in shape.against]
    outcomes: dict[str, list[Outcome]] = {name: [] for name in names if name in contenders}
    for name in outcomes:  # the first prompts and answers of this length: exclude one-time costs
        _, wave = _waves(shape, tokenizer, 0, name)
        contenders[name].run(replace(wave, prompts=wave.prompts[:2]))
    for number in range(1, rounds + 1):
        turn = list(outcomes) if number % 2 else list(reversed(outcomes))
        for name in turn:
            warm_up, wave = _waves(shape, tokenizer, number, name)
            contenders[name].run(warm_up)
            outcomes[name].append(contenders[name].run(wave))
    yield from _figures(shape, outcomes)


def _waves(shape: Shape, tokenizer: PreTrainedTokenizerBase, number: int, name: str) -> tuple[Wave, Wave]:
    """The warm-up wave and the measured one. All prompts of a load differ."""
    count = min(shape.concurrent, _STOCK_REQUESTS) if name == STOCK else shape.concurrent
    seeds = range(number * 1000, number * 1000 + count)
    prompt_tokens, new_tokens = _WARM_UP
    warm_up = tuple(prompt_of(tokenizer, prompt_tokens, seed + _WARM_UP_SEED) for seed in seeds)
    prompts = tuple(prompt_of(tokenizer, shape.prompt_tokens, seed) for seed in seeds)
    return (
        Wave(warm_up, new_tokens, shape.temperature, seed=number),
        Wave(prompts, shape.new_tokens, shape.temperature, seed=number),
    )


def _figures(shape: Shape, outcomes: dict[str, list[Outcome]]) -> Iterator[Measurement]:
    for name, found in outcomes.items():
        ttft_ms = sorted(outcome.ttft_ms for outcome in found)[len(found) // 2]
        rates = tuple(outcome.rate for outcome in found)
        yield Measurement(shape.group, name, "tokens/s", rates, note=f"TTFT p50 {ttft_ms:,.0f} ms")
    if shape.concurrent == _ALL_SLOTS:
        pairs = zip(outcomes[ALONE], outcomes[RELAY], strict=True)
        shares = tuple((1 - alone.cpu_s / ours.cpu_s) * 100 for alone, ours in pairs)
        yield Measurement(
            shape.group, "CPU time outside the engine", "%", shares, "≤", 10.0, "worker and Redis less engine alone"
        )
    for name, target in shape.against.items():
        if name in outcomes:
            pairs = zip(outcomes[RELAY], outcomes[name], strict=True)
            ratios = tuple(ours.rate / theirs.rate for ours, theirs in pairs)
            yield Measurement(shape.group, f"tokenrelay ÷ {name}", "×", ratios, "≥" if target else "", target)
