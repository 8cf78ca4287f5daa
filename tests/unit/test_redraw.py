"""An answer's draws made again: which token is the first that isn't the draw's."""

from __future__ import annotations

import pytest
import torch

from tokenrelay.worker.sampling.params import SamplingParams
from tokenrelay.worker.sampling.redraw import first_difference, redraw
from tokenrelay.worker.sampling.row import Row

VOCAB = 30
PARAMS = SamplingParams(1.2, 0, 1.0, 9, repetition_penalty=1.5, frequency_penalty=0.5, bad_words=((3, 4),))
START = Row(PARAMS, (1, 2), (), frozenset({0}))
LOGITS = torch.randn(101, VOCAB, generator=torch.Generator().manual_seed(2)) * 2


def answer() -> list[int]:
    """100 tokens: more than are drawn at a time."""
    tokens: list[int] = []
    for position in range(100):
        tokens.append(redraw(LOGITS[: position + 1], START, tokens)[-1] or 0)
    return tokens


ANSWER = answer()


def test_the_answer_is_drawn_again() -> None:
    assert redraw(LOGITS[:100], START, ANSWER) == ANSWER
    assert first_difference(LOGITS[:100], START, ANSWER) is None


@pytest.mark.parametrize("position", [1, 40, 64, 65, 100])
def test_a_changed_token_is_found_at_its_index(position: int) -> None:
    forged = list(ANSWER)
    forged[position - 1] = (forged[position - 1] + 1) % VOCAB
    assert first_difference(LOGITS[:100], START, forged) == position


def test_the_end_is_drawn_again_too() -> None:
    after = redraw(LOGITS, START, ANSWER)[-1]
    assert after is not None
    assert first_difference(LOGITS, Row(PARAMS, (1, 2), (), frozenset({after})), ANSWER) is None
    assert first_difference(LOGITS, Row(PARAMS, (1, 2), (), frozenset({after + 1})), ANSWER) == 101


def test_a_position_without_a_token_left_draws_none() -> None:
    nothing = torch.zeros(1, dtype=torch.int32)
    assert redraw(LOGITS[:1], START, (), lambda _: nothing) == [None]
