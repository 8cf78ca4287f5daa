"""What options cost: waves of requests that ask for something beside the same without, in turns within each round.

Through the whole pipeline, so a schema's compilation and the bytes of log-probabilities count. Then the CPU time of one
step's draw for rows that ask for nothing.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from benchmarks.contenders import SLOTS, Arena, Metered
from benchmarks.report import Measurement
from benchmarks.waves import Wave, prompt_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from transformers import PreTrainedTokenizerBase

    from benchmarks.options import BenchOptions
    from benchmarks.waves import Outcome

GROUP: Final = "what a request may ask for"
NOTHING: Final = "nothing"
_PROMPT_TOKENS: Final = 40
_WARM_UP_TOKENS: Final = 8
_DRAW_ROUNDS: Final = 25
_KINDS: Final = (
    {"type": "string", "minLength": 4, "maxLength": 20},
    {"type": "integer", "minimum": 0, "maximum": 99_999},
    {"enum": ["low", "medium", "high"]},
    {"type": "boolean"},
)


def schema(number: int) -> dict[str, Any]:
    """A schema that no other number has, and whose answers don't fit into a wave's tokens."""
    names = [f"{name}_{number}" for name in ("name", "amount", "level", "active")]
    properties = dict(zip(names, _KINDS, strict=True))
    item = {"type": "object", "properties": properties, "required": names, "additionalProperties": False}
    return {"type": "array", "items": item, "minItems": 64}


def _under_a_schema(number: int) -> dict[str, Any]:
    # A grammar says itself where an answer ends.
    return {"response_format": {"type": "json_schema", "value": schema(number)}, "ignore_eos": False}


def _the_same(options: dict[str, Any], _: int) -> dict[str, Any]:
    return options


ASKED: Final[dict[str, tuple[float, Callable[[int], dict[str, Any]]]]] = {
    "a JSON schema each": (0.9, _under_a_schema),
    "logprobs, top 5": (0.95, partial(_the_same, {"logprobs": True, "top_logprobs": 5})),
    "penalties": (
        0.95,
        partial(_the_same, {"repetition_penalty": 1.2, "frequency_penalty": 0.5, "presence_penalty": 0.5}),
    ),
}
"""Least rate over that of requests that ask for nothing, and the options of a request by its number."""


def measure(options: BenchOptions) -> Iterator[Measurement]:
    yield from _rates(options)
    yield _draw_of_nothing(options)


def _rates(options: BenchOptions) -> Iterator[Measurement]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(options.model)
    found: dict[str, list[Outcome]] = {name: [] for name in (NOTHING, *ASKED)}
    with Arena(options) as arena:
        pipeline = arena.pipeline()
        metered = Metered(pipeline, arena.pids())
        for number in range(options.rounds + 1):
            for name in found if number % 2 else reversed(found):
                wave = _wave(tokenizer, number, name, quick=options.quick)
                metered.run(replace(wave, new_tokens=_WARM_UP_TOKENS))
                if number:  # round 0 excludes one-time costs
                    found[name].append(metered.run(wave))
    for name, outcomes in found.items():
        rates = tuple(outcome.rate for outcome in outcomes)
        yield Measurement(GROUP, f"{SLOTS} at once that ask for {name}", "tokens/s", rates)
    for name, (target, _) in ASKED.items():
        pairs = list(zip(found[name], found[NOTHING], strict=True))
        rates = tuple(ours.rate / plain.rate for ours, plain in pairs)
        yield Measurement(GROUP, f"rate, {name} ÷ {NOTHING}", "×", rates, "≥", target)
        spent = tuple(plain.cpu_s / plain.tokens / (ours.cpu_s / ours.tokens) for ours, plain in pairs)
        yield Measurement(GROUP, f"tokens by CPU time, {name} ÷ {NOTHING}", "×", spent, note="worker and Redis")


def _wave(tokenizer: PreTrainedTokenizerBase, number: int, name: str, *, quick: bool) -> Wave:
    count, new_tokens = (2, 8) if quick else (SLOTS, 64)
    seeds = range(number * 1000, number * 1000 + count)
    asked = tuple(ASKED[name][1](seed) for seed in seeds) if name in ASKED else ()
    prompts = tuple(prompt_of(tokenizer, _PROMPT_TOKENS, seed) for seed in seeds)
    return Wave(prompts, new_tokens, 1.0, seed=number, asked=asked)


def _draw_of_nothing(options: BenchOptions) -> Measurement:
    from benchmarks import draw_step

    shape = replace(draw_step.Shape(), rows=2, vocabulary=64) if options.quick else draw_step.Shape()
    _, nothing = draw_step.measure(shape, 1 if options.quick else _DRAW_ROUNDS, 1.0, only=NOTHING)
    note = f"{shape.rows} rows × {shape.vocabulary:,}, sampled, one thread"
    name = "draw of a step that asks for nothing ÷ bare draw"
    return Measurement(GROUP, name, "×", nothing.ratios, "≤", 1.02, note)
