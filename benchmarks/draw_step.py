"""`python -m benchmarks.draw_step`: CPU time of the default engine's draw of one step, with each option and without.

Paired: in each round every case draws once over the same scores, and a case's figure is the median of its ratios to the
bare draw in the same round. The bare draw is what version 1 requests need: encoding the parameters, temperature,
filters and noise. Thread time of one thread, so that a busy machine distorts little.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, replace
from statistics import median
from typing import TYPE_CHECKING, Any, Final

import torch
from rich.console import Console
from rich.table import Table
from transformers.generation.continuous_batching.requests import FutureRequestState, RequestState

from tokenrelay.worker.engine.contract import EngineRequest
from tokenrelay.worker.engine.transformers.sampling_rows import LiveRequest, PositionKeyedSampler
from tokenrelay.worker.sampling.params import SamplingParams
from tokenrelay.worker.sampling.sampler import PARAMETER_ROWS, encode_params, sample_scores

if TYPE_CHECKING:
    from collections.abc import Callable

_PLAIN: Final = SamplingParams(temperature=1.0, top_k=0, top_p=1.0, seed=7)
OPTIONS: Final[dict[str, dict[str, Any]]] = {
    "nothing": {},
    "min_p 0.05": {"min_p": 0.05},
    "logit_bias of 100": {"logit_bias": tuple((3 * index, 1.0) for index in range(100))},
    "repetition_penalty": {"repetition_penalty": 1.2},
    "frequency and presence": {"frequency_penalty": 0.5, "presence_penalty": 0.5},
    "64 bad words": {"bad_words": tuple((index, index + 1) for index in range(64))},
    "min_tokens": {"min_tokens": 10**6},
    "all of these": {
        "min_p": 0.05,
        "repetition_penalty": 1.2,
        "frequency_penalty": 0.5,
        "presence_penalty": 0.5,
        "min_tokens": 10**6,
    },
}


@dataclass(frozen=True, slots=True)
class Shape:
    """Of a step: its rows, the vocabulary, and the tokens of prompt and answer."""

    rows: int = 32
    vocabulary: int = 49_152
    prompt_tokens: int = 250
    answer_tokens: int = 250


@dataclass(frozen=True, slots=True)
class Figure:
    name: str
    cpu_us: float
    """The rounds' median."""
    ratios: tuple[float, ...]
    """To the bare draw, in each round."""


def measure(shape: Shape, rounds: int, temperature: float, only: str = "") -> list[Figure]:
    """The bare draw's figure, then that of every case, or of the one named."""
    torch.set_num_threads(1)
    scores = torch.randn(shape.rows, shape.vocabulary, generator=torch.Generator().manual_seed(0)) * 3
    plain = replace(_PLAIN, temperature=temperature)
    steps = {"bare": _bare(shape, plain)}
    steps |= {name: _step(shape, replace(plain, **options)) for name, options in OPTIONS.items() if only in ("", name)}
    times: dict[str, list[float]] = {name: [] for name in steps}
    for index in range(rounds + 1):
        for name, step in steps.items() if index % 2 else reversed(steps.items()):
            own = scores.clone()  # a step's scores are its own: the draw changes them
            began = time.thread_time_ns()
            step(own)
            if index:  # the first round warms up
                times[name].append((time.thread_time_ns() - began) / 1000)
    return [
        Figure(name, median(each), tuple(taken / bare for taken, bare in zip(each, times["bare"], strict=True)))
        for name, each in times.items()
    ]


def _bare(shape: Shape, params: SamplingParams) -> Callable[[torch.Tensor], object]:
    storage = torch.zeros(PARAMETER_ROWS, shape.rows, dtype=torch.int32)

    def step(scores: torch.Tensor) -> object:
        rows = [(params, shape.answer_tokens + 1) for _ in range(shape.rows)]
        storage[:, : shape.rows] = encode_params(rows)
        return sample_scores(scores, storage).max(dim=-1)

    return step


def _step(shape: Shape, params: SamplingParams) -> Callable[[torch.Tensor], object]:
    sampler, storage = PositionKeyedSampler(), torch.zeros(PARAMETER_ROWS, shape.rows, dtype=torch.int32)
    batch = [FutureRequestState(_state(shape, params, row), True, {}, 1) for row in range(shape.rows)]
    input_ids: Any = torch.zeros(shape.rows, dtype=torch.long)

    def step(scores: torch.Tensor) -> object:
        sampler.prepare_tensor_args(batch, storage)
        return sampler(input_ids, scores, storage).max(dim=-1)

    return step


def _state(shape: Shape, params: SamplingParams, row: int) -> RequestState:
    """A request whose tokens are spread over the vocabulary, some of them more than once."""
    tokens = [
        (row * 31 + index % 200 * 211) % shape.vocabulary for index in range(shape.prompt_tokens + shape.answer_tokens)
    ]
    prompt_ids = tuple(tokens[: shape.prompt_tokens])
    live = LiveRequest(EngineRequest(str(row), prompt_ids, (), 10**6, params), frozenset({2}))
    return RequestState(
        str(row),
        list(prompt_ids),
        generated_tokens=tokens[shape.prompt_tokens :],
        position_offset=len(tokens),
        logit_processor_kwargs={"live": live},
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="CPU time of the draw of one step")
    parser.add_argument("--rounds", type=int, default=25)
    rounds = parser.parse_args().rounds
    shape = Shape()
    table = Table("options", "sampled, ms", "÷ bare", "greedy, ms", "− bare, ms", title=str(shape))
    sampled, greedy = measure(shape, rounds, 1.0), measure(shape, rounds, 0.0)
    for drawn, taken in zip(sampled, greedy, strict=True):
        more = (taken.cpu_us - greedy[0].cpu_us) / 1000
        columns = (drawn.cpu_us / 1000, median(drawn.ratios), taken.cpu_us / 1000, more)
        table.add_row(drawn.name, *(f"{value:.3f}" for value in columns))
    Console().print(table)


if __name__ == "__main__":
    main()
