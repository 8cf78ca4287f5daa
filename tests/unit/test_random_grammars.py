"""Random schemas and patterns through the whole draw: each answer that ends complete validates.

A model of random scores, which are higher for what closes a string, an array or an object: as a model that writes an
answer to its end, and at temperature 3 without any other sense.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import pytest
import torch

from tests.grammars import vocabulary
from tests.random_schemas import CLOSING, Format, random_format
from tokenrelay.worker.sampling.draw import draw_scores
from tokenrelay.worker.sampling.grammar.compiler import GrammarCompiler
from tokenrelay.worker.sampling.grammar.grammar import Grammar
from tokenrelay.worker.sampling.grammar.matcher import AnswerMask
from tokenrelay.worker.sampling.params import SamplingParams
from tokenrelay.worker.sampling.row import Row

if TYPE_CHECKING:
    from collections.abc import Iterator
    from random import Random

EOS: Final = 0
MOST_TOKENS: Final = 400
ROWS: Final = 32
"""Answers that are drawn together."""


@pytest.fixture(scope="module")
def compiler() -> Iterator[GrammarCompiler]:
    compiler = GrammarCompiler(vocabulary())
    yield compiler
    compiler.close()


@dataclass(slots=True)
class Case:
    """An answer under a random grammar."""

    form: Format
    params: SamplingParams
    mask: AnswerMask
    cut: int
    """Behind this token another worker continues the answer."""
    ids: list[int] = field(default_factory=list)
    end: str = ""


def random_params(rng: Random, seed: int) -> SamplingParams:
    """Temperature 3, alone or with other options; or less."""
    kind = rng.randrange(4)
    if kind == 0:
        return SamplingParams(3.0, 40, 0.95, seed, repetition_penalty=1.1, presence_penalty=0.5)
    if kind == 1:
        return SamplingParams(rng.choice((0.0, 0.7, 1.0, 2.0)), 0, 1.0, seed, min_p=0.02)
    return SamplingParams(3.0, 0, 1.0, seed)


def random_case(seed: int, compiler: GrammarCompiler) -> Case:
    rng, form = random.Random(seed), random_format(seed)
    mask = AnswerMask(compiler.compile(Grammar.of(form.option)))
    return Case(form, random_params(rng, seed), mask, rng.randrange(1, 40))


def generate(cases: list[Case], scores: torch.Generator) -> None:
    """Draw all answers to their ends, `ROWS` at a time."""
    bias = torch.zeros(len(vocabulary().tokens))
    bias[list(CLOSING)] = torch.tensor(list(CLOSING.values()))
    waiting, running = list(cases), list[Case]()
    while waiting or running:
        while waiting and len(running) < ROWS:
            running.append(waiting.pop())
        logits = torch.randn(len(running), len(bias), generator=scores) * 2 + bias
        rows = [Row(each.params, (7, 8), each.ids, frozenset({EOS}), each.mask(each.ids)) for each in running]
        best, drawn = draw_scores(logits, rows).max(dim=-1)
        for each, found, token in zip(running, best.isfinite().tolist(), drawn.tolist(), strict=True):
            each.end = "dead end" if not found else "stop" if token == EOS else ""
            if not each.end:
                each.ids.append(token)
                each.end = "length" if len(each.ids) == MOST_TOKENS else ""
            if len(each.ids) == each.cut:
                each.mask = AnswerMask(each.mask.grammar)  # which replays them
        running = [each for each in running if not each.end]


def text_of(ids: list[int]) -> str:
    return b"".join(vocabulary().tokens[token_id] for token_id in ids).decode()


def check(seeds: range, compiler: GrammarCompiler) -> None:
    """Generate an answer for each seed, and validate those that are complete, nearly all."""
    complete = 0
    for first in range(seeds.start, seeds.stop, 2 * ROWS):
        cases = [random_case(seed, compiler) for seed in range(first, min(first + 2 * ROWS, seeds.stop))]
        generate(cases, torch.Generator().manual_seed(first))
        for each in cases:
            assert each.end in ("stop", "length"), each.form.option
            if each.end == "stop":
                text = text_of(each.ids)
                assert each.form.is_valid(text), (each.form.option, text)
                complete += 1
    assert complete > 0.8 * len(seeds), complete


def test_complete_answers_validate(compiler: GrammarCompiler) -> None:
    """Of 48 grammars; `make slow` has 3,000."""
    check(range(48), compiler)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("first", range(1_000, 4_000, 500))
def test_complete_answers_of_many_grammars_validate(compiler: GrammarCompiler, first: int) -> None:
    check(range(first, first + 500), compiler)
