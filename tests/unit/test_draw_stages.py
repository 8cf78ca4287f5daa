"""Each stage of the draw alone, against the definition in transformers or vLLM, on random scores."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from transformers import (
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    NoBadWordsLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    TemperatureLogitsWarper,
)

from tokenrelay.worker.sampling import adjustments
from tokenrelay.worker.sampling.adjustments import STAGES
from tokenrelay.worker.sampling.draw import draw_scores
from tokenrelay.worker.sampling.params import SamplingParams
from tokenrelay.worker.sampling.row import Row

VOCAB = 200
PLAIN = SamplingParams(temperature=0.0, top_k=0, top_p=1.0, seed=1)
PROMPTS = [[3, 5, 5, 9, 120], [7], [11, 12, 13], [199, 0]]
ANSWERS: list[list[int]] = [[5, 5, 8, 60, 5], [], [12, 13, 12, 13], [1, 2, 3, 2, 1]]


def logits(rows: int = len(PROMPTS), dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    scores = torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(seed), dtype=dtype) * 4
    scores[0, 40:60] = -torch.inf  # as models with a masked part of their vocabulary give them
    return scores


def rows(end_ids: frozenset[int] = frozenset(), **options: Any) -> list[Row]:
    return [
        Row(replace(PLAIN, **options), prompt, answer, end_ids) for prompt, answer in zip(PROMPTS, ANSWERS, strict=True)
    ]


def adjusted(raw: torch.Tensor, rows: list[Row]) -> torch.Tensor:
    return adjustments.adjusted(raw, dict(enumerate(rows)))


def bitmask(allowed: set[int], vocab: int = VOCAB) -> torch.Tensor:
    words = [0] * -(-vocab // 32)
    for token_id in allowed:
        words[token_id // 32] |= 1 << token_id % 32
    return torch.tensor([word - (word >> 31 << 32) for word in words], dtype=torch.int32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_logit_bias_is_transformers_sequence_bias_of_one_token(dtype: torch.dtype) -> None:
    bias = {4: -100.0, 8: 2.5, 45: 3.0, 199: 100.0}
    processor = SequenceBiasLogitsProcessor([[[token_id], value] for token_id, value in bias.items()])
    raw = logits(dtype=dtype)
    expected = processor(torch.zeros(len(raw), 3, dtype=torch.long), raw.clone())
    assert torch.equal(adjusted(raw, rows(logit_bias=tuple(bias.items()))), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("penalty", [0.5, 1.25, 100.0])
def test_repetition_penalty_is_transformers_over_prompt_and_answer(penalty: float, dtype: torch.dtype) -> None:
    processor = RepetitionPenaltyLogitsProcessor(penalty)
    raw = logits(dtype=dtype)
    scores = adjusted(raw, rows(repetition_penalty=penalty))
    for index, (prompt, answer) in enumerate(zip(PROMPTS, ANSWERS, strict=True)):
        expected = processor(torch.tensor([prompt + answer]), raw[index : index + 1].clone())
        assert torch.equal(scores[index], expected[0])


def vllm_penalties(raw: torch.Tensor, answer: list[int], frequency: float, presence: float) -> torch.Tensor:
    """vLLM 0.32, vllm.model_executor.layers.utils.apply_penalties, for one row."""
    counts = torch.tensor(answer, dtype=torch.long).bincount(minlength=len(raw)).to(raw.dtype)
    raw = raw - torch.tensor(frequency, dtype=torch.float32).to(raw.dtype) * counts
    return raw - torch.tensor(presence, dtype=torch.float32).to(raw.dtype) * (counts > 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("frequency", "presence"), [(0.7, 0.0), (0.0, 1.3), (-2.0, 0.9), (0.3, -2.0)])
def test_frequency_and_presence_penalty_are_vllms(frequency: float, presence: float, dtype: torch.dtype) -> None:
    raw = logits(dtype=dtype)
    scores = adjusted(raw, rows(frequency_penalty=frequency, presence_penalty=presence))
    for index, answer in enumerate(ANSWERS):
        assert torch.equal(scores[index], vllm_penalties(raw[index], answer, frequency, presence))


def vllm_bad_words(raw: torch.Tensor, words: tuple[tuple[int, ...], ...], answer: list[int]) -> torch.Tensor:
    """vLLM 0.32, vllm.v1.sample.ops.bad_words._apply_bad_words_single_batch."""
    raw = raw.clone()
    for word in words:
        if len(word) > len(answer) + 1:
            continue
        prefix_length = len(word) - 1
        actual_prefix = answer[-prefix_length:] if prefix_length > 0 else []
        if actual_prefix == list(word[:prefix_length]):
            raw[word[-1]] = -torch.inf
    return raw


WORDS = ((8,), (5, 77), (12, 13, 12), (13, 12, 13, 5), (2, 1, 0), (1, 2, 3, 2, 1, 9), (199, 0, 1, 2, 3, 2, 1, 4))


def test_bad_words_are_vllms() -> None:
    raw = logits()
    scores = adjusted(raw, rows(bad_words=WORDS))
    for index, answer in enumerate(ANSWERS):
        assert torch.equal(scores[index], vllm_bad_words(raw[index], WORDS, answer))
    masked = [set((row == -torch.inf).nonzero().squeeze(1).tolist()) - set(range(40, 60)) for row in scores]
    assert masked == [{8, 77}, {8}, {8, 12, 5}, {8, 0, 9}]


def test_bad_words_are_transformers_where_no_word_begins_in_the_prompt() -> None:
    processor = NoBadWordsLogitsProcessor([list(word) for word in WORDS], eos_token_id=None)
    raw = logits()
    scores = adjusted(raw, rows(bad_words=WORDS))
    for index, answer in enumerate(ANSWERS):
        expected = processor(torch.tensor([answer or [150]]), raw[index : index + 1].clone())
        assert torch.equal(scores[index], expected[0])


@pytest.mark.parametrize("vocab", [VOCAB, 64, 65])
def test_a_token_mask_keeps_the_bits_that_are_set_and_nothing_beyond_its_end(vocab: int) -> None:
    """As vLLM applies xgrammar's bitmask: 32 tokens in an int32, the lowest bit first."""
    raw = logits()
    allowed = {0, 31, 32, 63, 5}
    asked = rows()
    asked[2] = replace(asked[2], mask=bitmask(allowed, vocab))
    scores = adjusted(raw, asked)
    assert set(scores[2].isfinite().nonzero().squeeze(1).tolist()) == allowed
    assert torch.equal(scores[2][list(allowed)], raw[2][list(allowed)])
    assert torch.equal(scores[[0, 1, 3]], raw[[0, 1, 3]])


@pytest.mark.parametrize("min_tokens", [0, 1, 4, 5, 6])
def test_min_tokens_is_transformers_min_new_tokens(min_tokens: int) -> None:
    ends = frozenset({2, 8, 150})
    raw = logits()
    scores = adjusted(raw, rows(min_tokens=min_tokens, end_ids=ends))
    for index, (prompt, answer) in enumerate(zip(PROMPTS, ANSWERS, strict=True)):
        processor = MinNewTokensLengthLogitsProcessor(len(prompt), min_tokens, sorted(ends))
        expected = processor(torch.tensor([prompt + answer]), raw[index : index + 1].clone())
        assert torch.equal(scores[index], expected[0])


def test_a_finished_grammar_beats_min_tokens_and_an_unfinished_one_does_not() -> None:
    """As vLLM 0.32 restores the stop tokens of structured output that nothing else may follow."""
    raw = logits()
    asked = rows(min_tokens=100, end_ids=frozenset({2, 8}))
    asked[0] = replace(asked[0], mask=bitmask({2, 8}))
    asked[1] = replace(asked[1], mask=bitmask({2, 9}))
    asked[3] = replace(asked[3], mask=bitmask(set()))
    scores = adjusted(raw, asked)
    left = [set(row.isfinite().nonzero().squeeze(1).tolist()) for row in scores]
    assert left[0] == {2, 8}
    assert left[1] == {9}
    assert left[2] == set(range(VOCAB)) - {2, 8}
    assert left[3] == set()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("min_p", [0.01, 0.1, 0.5, 1.0])
def test_min_p_is_transformers_warper_behind_temperature(min_p: float, dtype: torch.dtype) -> None:
    raw = logits(dtype=dtype)
    scores = draw_scores(raw, rows(temperature=1.5, min_p=min_p))
    no_ids = cast("torch.LongTensor", torch.empty(0, dtype=torch.long))
    tempered = cast("torch.FloatTensor", TemperatureLogitsWarper(1.5)(no_ids, cast("torch.FloatTensor", raw)))
    expected = MinPLogitsWarper(min_p)(no_ids, tempered)
    assert torch.equal(scores.isfinite(), expected.isfinite())
    assert (scores.isfinite().sum(dim=-1) < VOCAB).all()


def test_the_stages_run_in_the_order_that_is_specified() -> None:
    """Each pair in another order gives another score: 8 is biased, repeated, in the answer and an end; masks come
    last, so that no bias brings a token back."""
    assert [stage.__name__ for stage in STAGES] == [
        "add_logit_bias",
        "penalize_repetition",
        "penalize_frequency",
        "penalize_presence",
        "mask_bad_words",
        "mask_tokens",
        "mask_end_tokens",
    ]
    raw = torch.zeros(1, VOCAB)
    options = replace(
        PLAIN,
        logit_bias=((8, 3.0), (9, 100.0)),
        repetition_penalty=2.0,
        frequency_penalty=0.25,
        presence_penalty=0.5,
        bad_words=((9,),),
    )
    scores = adjusted(raw, [Row(options, [8], [8, 8])])
    assert scores[0, 8] == (0.0 + 3.0) / 2.0 - 2 * 0.25 - 0.5
    assert scores[0, 9] == -torch.inf


def test_ids_beyond_the_vocabulary_name_no_score() -> None:
    raw = logits()
    asked = rows(
        logit_bias=((VOCAB, 5.0), (-1, 5.0)), bad_words=((VOCAB + 3,),), min_tokens=9, end_ids=frozenset({VOCAB + 7})
    )
    assert torch.equal(adjusted(raw, asked), raw)


def test_the_given_scores_are_left_as_they_are() -> None:
    raw = logits()
    before = raw.clone()
    draw_scores(raw, rows(temperature=0.7, logit_bias=((3, 5.0),), repetition_penalty=1.5, bad_words=WORDS, min_p=0.1))
    assert torch.equal(raw, before)


def test_rows_that_ask_for_nothing_keep_their_scores() -> None:
    raw = logits()
    assert adjustments.adjusted(raw, {}) is raw
    asked = rows(
        repetition_penalty=1.5,
        frequency_penalty=0.5,
        presence_penalty=0.5,
        logit_bias=((7, 1.0),),
        bad_words=WORDS,
        min_tokens=9,
        end_ids=frozenset({2}),
    )
    asked[3] = replace(asked[3], mask=bitmask({2, 4}))
    scores = adjustments.adjusted(raw, {3: asked[3], 1: asked[1]})
    assert torch.equal(scores[[0, 2]], raw[[0, 2]])
    for index in (1, 3):
        assert torch.equal(scores[index], adjusted(raw[index : index + 1], asked[index : index + 1])[0])
