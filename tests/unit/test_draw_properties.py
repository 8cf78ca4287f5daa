"""The whole draw: whatever options are mixed, a row's draw depends on its request alone."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenrelay.worker.sampling.draw import draw_scores
from tokenrelay.worker.sampling.params import SamplingParams
from tokenrelay.worker.sampling.row import Row

if TYPE_CHECKING:
    from collections.abc import Sequence

pytestmark = pytest.mark.usefixtures("one_torch_thread")
VOCAB = 41
END = frozenset({0})
TOKEN_IDS = st.integers(0, VOCAB - 1)


@st.composite
def options(draw: st.DrawFn) -> SamplingParams:
    def some(value: st.SearchStrategy[float], neutral: float) -> float:
        return draw(st.one_of(st.just(neutral), value))

    return SamplingParams(
        temperature=some(st.floats(0.3, 3.0), 0.0),
        top_k=draw(st.sampled_from([0, 0, 5, 20])),
        top_p=some(st.floats(0.3, 0.95), 1.0),
        seed=draw(st.integers(0, 2**63 - 1)),
        min_p=some(st.floats(0.01, 0.3), 0.0),
        logit_bias=tuple(draw(st.dictionaries(TOKEN_IDS, st.floats(-100, 100), max_size=4)).items()),
        repetition_penalty=some(st.floats(0.5, 3.0), 1.0),
        frequency_penalty=some(st.floats(-2, 2), 0.0),
        presence_penalty=some(st.floats(-2, 2), 0.0),
        bad_words=tuple(draw(st.lists(st.lists(TOKEN_IDS, min_size=1, max_size=3).map(tuple), max_size=4))),
        min_tokens=draw(st.sampled_from([0, 0, 3, 30])),
    )


def raw_scores(prompt: Sequence[int], emitted: Sequence[int]) -> torch.Tensor:
    """(VOCAB,): a model whose scores are a function of the whole sequence."""
    words = random.Random(str((tuple(prompt), tuple(emitted))))
    return torch.tensor([words.gauss(0.0, 3.0) for _ in range(VOCAB)])


def mask_of(emitted: Sequence[int]) -> torch.Tensor:
    """A grammar of a kind: which tokens may follow depends on all tokens so far."""
    words = random.Random(sum((index + 1) * token_id for index, token_id in enumerate(emitted)))
    return torch.tensor([words.getrandbits(32) - 2**31, words.getrandbits(32) - 2**31], dtype=torch.int32)


class Stream:
    """A request and its answer so far."""

    def __init__(self, params: SamplingParams, prompt: Sequence[int], emitted: Sequence[int], masked: bool) -> None:
        self.params, self.prompt, self.emitted, self.masked = params, tuple(prompt), list(emitted), masked

    def row(self) -> Row:
        return Row(self.params, self.prompt, self.emitted, END, mask_of(self.emitted) if self.masked else None)


def step(streams: Sequence[Stream]) -> None:
    """One token each. A row without one is drawn like any other here: as token 0 or a NaN's place."""
    logits = torch.stack([raw_scores(stream.prompt, stream.emitted) for stream in streams])
    draws = draw_scores(logits, [stream.row() for stream in streams]).argmax(dim=-1).tolist()
    for stream, token_id in zip(streams, draws, strict=True):
        stream.emitted.append(token_id)


REQUESTS = st.lists(
    st.tuples(options(), st.lists(TOKEN_IDS, min_size=1, max_size=6), st.booleans()), min_size=1, max_size=5
)


@settings(deadline=None, max_examples=60)
@given(requests=REQUESTS, choices=st.randoms(use_true_random=False))
def test_a_stream_is_the_same_in_any_batch_and_order_and_resumed_anywhere(
    requests: list[tuple[SamplingParams, list[int], bool]], choices: random.Random
) -> None:
    tokens = 8
    alone = [Stream(params, prompt, (), masked) for params, prompt, masked in requests]
    for _ in range(tokens):
        for stream in alone:
            step([stream])
    # Each begins anew at a token of its own, and every step has some of them, in some order.
    resumed = [
        Stream(params, prompt, stream.emitted[: choices.randrange(tokens)], masked)
        for (params, prompt, masked), stream in zip(requests, alone, strict=True)
    ]
    while waiting := [stream for stream in resumed if len(stream.emitted) < tokens]:
        step(choices.sample(waiting, choices.randint(1, len(waiting))))
    assert [stream.emitted for stream in resumed] == [stream.emitted for stream in alone]
