"""What a request's options do to the raw scores, before temperature and filters: bias, penalties and masks.

Each stage is a function of (scores, rows) that changes the scores of those rows in place, and touches only the entries
that an option names. A row's result depends on that row alone. docs/sampling.md has the formulas. Knows no engine.
"""

from __future__ import annotations

import itertools
from collections import Counter
from typing import TYPE_CHECKING, Final

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

    from tokenrelay.worker.sampling.row import Row

    Stage = Callable[[torch.Tensor, Mapping[int, Row]], None]
    """Takes scores, (rows, vocab), float32 or float64, and some of its rows by their index."""


def adjusted(logits: torch.Tensor, rows: Mapping[int, Row]) -> torch.Tensor:
    """`logits` with the given rows, by their index, as `adjust` makes them; `logits` itself where there are none.

    logits: (rows, vocab), any float dtype, left as they are. Returns (rows, vocab), float32 or float64.
    """
    if not rows:
        return logits
    scores = logits.clone() if logits.dtype in (torch.float32, torch.float64) else logits.float()
    adjust(scores, rows)
    return scores


def adjust(scores: torch.Tensor, rows: Mapping[int, Row]) -> None:
    """Put the given rows through every stage, in place: a copy of a step's scores costs more than all stages.

    A row of which the masks leave no token is -inf everywhere.
    """
    for stage in STAGES:
        stage(scores, rows)


def add_logit_bias(scores: torch.Tensor, rows: Mapping[int, Row]) -> None:
    """score + bias of each ID that has one."""
    biased = _Entries(
        scores, {index: [token_id for token_id, _ in row.params.logit_bias] for index, row in rows.items()}
    )
    if biased:
        biases = biased.values(bias for row in rows.values() for _, bias in row.params.logit_bias)
        biased.write(biased.read() + biases)


def penalize_repetition(scores: torch.Tensor, rows: Mapping[int, Row]) -> None:
    """Scores of IDs that are in the prompt or the answer: divided by the penalty where positive, else multiplied.

    Keskar et al. 2019, section 4.1, with the sign's case as in transformers and vLLM.
    """
    repeated = _Entries(
        scores,
        {
            index: {*row.prompt_ids, *row.emitted_ids} if row.params.repetition_penalty != 1.0 else ()
            for index, row in rows.items()
        },
    )
    if repeated:
        score, penalty = repeated.read(), repeated.of_each_row(row.params.repetition_penalty for row in rows.values())
        repeated.write(torch.where(score > 0, score / penalty, score * penalty))


def penalize_frequency(scores: torch.Tensor, rows: Mapping[int, Row]) -> None:
    """score - penalty * occurrences, of each ID in the answer: OpenAI's definition. The prompt doesn't count."""
    counts = {
        index: Counter(row.emitted_ids) if row.params.frequency_penalty else Counter[int]()
        for index, row in rows.items()
    }
    emitted = _Entries(scores, counts)
    if emitted:
        occurrences = emitted.values(itertools.chain.from_iterable(count.values() for count in counts.values()))
        emitted.write(
            emitted.read() - emitted.of_each_row(row.params.frequency_penalty for row in rows.values()) * occurrences
        )


def penalize_presence(scores: torch.Tensor, rows: Mapping[int, Row]) -> None:
    """score - penalty, of each ID in the answer, however often."""
    emitted = _Entries(
        scores, {index: set(row.emitted_ids) if row.params.presence_penalty else () for index, row in rows.items()}
    )
    if emitted:
        emitted.write(emitted.read() - emitted.of_each_row(row.params.presence_penalty for row in rows.values()))


def mask_bad_words(scores: torch.Tensor, rows: Mapping[int, Row]) -> None:
    """-inf for the last token of each bad word whose other tokens end the answer, as in vLLM. Tokens of the prompt
    begin no bad word."""
    _Entries(scores, {index: _completions(row) for index, row in rows.items()}).mask()


def _completions(row: Row) -> set[int]:
    answer, words = row.emitted_ids, row.params.bad_words
    return {word[-1] for word in words if len(word) <= len(answer) + 1 and word[:-1] == _tail(answer, len(word) - 1)}


def _tail(ids: Sequence[int], length: int) -> tuple[int, ...]:
    return tuple(ids[len(ids) - length :])


def mask_tokens(scores: torch.Tensor, rows: Mapping[int, Row]) -> None:
    """-inf for the tokens that a row's bitmask doesn't allow, and for those beyond its end."""
    vocab = scores.shape[1]
    for index, row in rows.items():
        if row.mask is not None:
            scored = scores[index]
            bits = np.unpackbits(row.mask.numpy().view(np.uint8), bitorder="little")[:vocab]
            allowed = torch.from_numpy(bits.view(np.bool_)).to(scores.device)
            scored[: len(allowed)].masked_fill_(~allowed, -torch.inf)
            scored[len(allowed) :] = -torch.inf


def mask_end_tokens(scores: torch.Tensor, rows: Mapping[int, Row]) -> None:
    """-inf for the tokens that end the request, up to token `min_tokens`; as in vLLM not where a token mask allows
    nothing else: a finished grammar isn't continued."""
    early = {index: row.end_ids for index, row in rows.items() if row.position <= row.params.min_tokens}
    ends = _Entries(scores, early)
    if not ends:
        return
    kept = ends.read()
    ends.mask()
    bound = [index for index in early if rows[index].mask is not None]
    if bound:
        finished = torch.zeros(len(scores), dtype=torch.bool, device=scores.device)
        finished[bound] = scores[bound].amax(dim=-1) == -torch.inf
        ends.write(torch.where(finished[ends.rows], kept, -torch.inf))


STAGES: Final[tuple[Stage, ...]] = (
    add_logit_bias,
    penalize_repetition,
    penalize_frequency,
    penalize_presence,
    mask_bad_words,
    mask_tokens,
    mask_end_tokens,
)
"""In the order of the draw; temperature, filters and noise follow."""


class _Entries:
    """Some entries of a (rows, vocab) tensor, given as the IDs of some rows. IDs beyond the vocabulary are left out."""

    def __init__(self, scores: torch.Tensor, ids_of_rows: Mapping[int, Collection[int]]) -> None:
        self._scores = scores
        places = np.repeat(np.arange(len(ids_of_rows)), [len(ids) for ids in ids_of_rows.values()])
        ids = np.fromiter(itertools.chain.from_iterable(ids_of_rows.values()), np.int64, len(places))
        self._inside = (ids >= 0) & (ids < scores.shape[1])
        self._place_of_each = places[self._inside]
        rows = np.fromiter(ids_of_rows, np.int64, len(ids_of_rows))[self._place_of_each]
        self.rows = torch.from_numpy(rows).to(scores.device)
        self._ids = torch.from_numpy(ids[self._inside]).to(scores.device)

    def __bool__(self) -> bool:
        return len(self._place_of_each) > 0

    def read(self) -> torch.Tensor:
        return self._scores[self.rows, self._ids]

    def write(self, scores: torch.Tensor) -> None:
        self._scores[self.rows, self._ids] = scores

    def mask(self) -> None:
        if self:
            self._scores[self.rows, self._ids] = -torch.inf

    def values(self, given: Iterable[float]) -> torch.Tensor:
        """One value for each entry, rounded to float32 as every option is."""
        return self._tensor(np.fromiter(given, np.float32, len(self._inside))[self._inside])

    def of_each_row(self, given: Iterable[float]) -> torch.Tensor:
        """The row's value for each entry, rounded likewise."""
        return self._tensor(np.fromiter(given, np.float32)[self._place_of_each])

    def _tensor(self, values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(values).to(self._scores.device, self._scores.dtype)
