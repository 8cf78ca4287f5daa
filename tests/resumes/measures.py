"""Measures a stream: its draws made again from a plain forward pass, their entropy, and what the option changed."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import torch

from tokenrelay.worker.core.attempts import Attempt, engine_request
from tokenrelay.worker.sampling.draw import draw_scores
from tokenrelay.worker.sampling.params import SamplingParams
from tokenrelay.worker.sampling.redraw import first_difference, redraw
from tokenrelay.worker.sampling.row import Row

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.resumes.requests import Asked
    from tests.resumes.takeovers import Answer, Worker
    from tokenrelay.shared.options import Submission
    from tokenrelay.worker.engine.contract import EngineRequest
    from tokenrelay.worker.engine.transformers.models import LoadedModel
    from tokenrelay.worker.sampling.row import TokenMask

LEAST_BITS: Final = 3.0
LEAST_CHANGED: Final = 0.3
_ROWS: Final = 32
"""Positions at a time: a row of scores has the vocabulary's size."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One stream."""

    tokens: int
    verified: bool
    """Whether the draw from a plain forward pass gives every token, and the end where one was drawn."""
    bits: float
    """Mean entropy of the distributions that its tokens were drawn from."""
    changed: float
    """Share of tokens that come out differently without the option, after the same tokens: another ID, another text
    that they release, or, of `logprobs` alone, without them."""

    @property
    def counts(self) -> bool:
        """Whether an error in it would be visible."""
        return self.bits >= LEAST_BITS and self.changed >= LEAST_CHANGED


def measure(worker: Worker, asked: Asked, answer: Answer) -> Measured:
    """Of an undisturbed answer. `worker` has the model; its engine isn't used."""
    request, bare = (engine_request_of(worker, asked, options) for options in (asked.submission, asked.bare))
    start, plain = (start_of(each, worker.loaded.eos_token_ids) for each in (request, bare))
    ids = answer.ids
    scores = forward(worker.loaded, request.prompt_ids, ids)
    ended_by_draw = answer.drew_end and not (ids and ids[-1] in request.kept_end_ids)
    until = len(ids) + ended_by_draw
    entropies = bits(scores, start, ids, request.token_mask)
    without = redraw(scores[: len(ids)], plain, ids)
    texts = [release.text for release in worker.reader.text(asked.bare).replay(ids)]
    changed = [
        drawn != token[1] or text != token[0] or asked.kind == "logprobs"
        for drawn, text, token in zip(without, texts, answer.tokens, strict=True)
    ]
    return Measured(
        len(ids),
        first_difference(scores[:until], start, ids, request.token_mask) is None,
        sum(entropies) / max(len(ids), 1),
        sum(changed) / max(len(ids), 1),
    )


def engine_request_of(worker: Worker, asked: Asked, options: Submission) -> EngineRequest:
    """As a worker makes it of a first claim, with some options."""
    claimed = worker.claim(replace(asked, submission=options))
    assert claimed.work is not None
    return engine_request(Attempt.begin(claimed), claimed.work)


def start_of(request: EngineRequest, eos_ids: frozenset[int]) -> Row:
    """The request before its first token."""
    ends = frozenset(request.sampling.stop_token_ids) | (frozenset() if request.ignore_eos else eos_ids)
    return Row(request.sampling, request.prompt_ids, (), ends)


def forward(loaded: LoadedModel, prompt_ids: Sequence[int], answer_ids: Sequence[int]) -> torch.Tensor:
    """(tokens of the answer + 1, vocab): what each is drawn from, and what follows, as the draw gets it."""
    return raw_scores(loaded, (*prompt_ids, *answer_ids))[len(prompt_ids) - 1 :]


def raw_scores(loaded: LoadedModel, ids: Sequence[int]) -> torch.Tensor:
    """(tokens, vocab), float32 or float64: the model's scores behind each token."""
    with torch.no_grad():
        scores: torch.Tensor = loaded.model(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0]
    return scores if scores.dtype.itemsize > 4 else scores.float()


def bits(scores: torch.Tensor, start: Row, answer: Sequence[int], token_mask: TokenMask | None = None) -> list[float]:
    """The entropy of what each token of an answer was drawn from: the draw's own scores without their noise.

    scores: (tokens or more, vocab), raw. start: the request before its first token.
    """
    found: list[float] = []
    noise_only = SamplingParams(1.0, 0, 1.0, start.params.seed)
    for begin in range(0, len(answer), _ROWS):
        places = range(begin, min(begin + _ROWS, len(answer)))
        rows = [
            replace(start, emitted_ids=answer[:place], mask=token_mask(answer[:place]) if token_mask else None)
            for place in places
        ]
        drawn = draw_scores(scores[places.start : places.stop], rows)
        noise = draw_scores(torch.zeros_like(drawn), [replace(row, params=noise_only, mask=None) for row in rows])
        chances = (drawn - noise).softmax(dim=-1)
        found += (torch.special.entr(chances).sum(dim=-1) / math.log(2)).tolist()
    return found
