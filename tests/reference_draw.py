"""The draw as docs/sampling.md specifies it, in plain Python: written from that page, not from the worker's code."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

_64 = 2**64
_GOLDEN = 0x9E3779B97F4A7C15
NONE = -math.inf


def mix(z: int) -> int:
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % _64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % _64
    return z ^ (z >> 31)


def noise_key(seed: int, position: int) -> int:
    return mix((mix((seed + _GOLDEN) % _64) + position * _GOLDEN) % _64)


def noise_bits(key: int, token_id: int) -> int:
    return mix((key + (token_id + 1) * _GOLDEN) % _64)


def noise(bits: int) -> float:
    u = min((bits >> 1) * 2.0**-63 + 2.0**-64, 1 - 2.0**-24)
    return -math.log(-math.log1p(-u))


def adjusted(case: dict[str, Any]) -> list[float]:
    """The scores before temperature."""
    scores, options = list(case["logits"]), case["options"]
    prompt, answer, ids = case["prompt_ids"], case["answer_ids"], range(len(case["logits"]))
    for token_id, bias in options.get("logit_bias", {}).items():
        scores[int(token_id)] += bias
    penalty = options.get("repetition_penalty", 1.0)
    for token_id in {*prompt, *answer}:
        scores[token_id] = scores[token_id] / penalty if scores[token_id] > 0 else scores[token_id] * penalty
    for token_id in set(answer):
        scores[token_id] -= options.get("frequency_penalty", 0.0) * answer.count(token_id)
        scores[token_id] -= options.get("presence_penalty", 0.0)
    for *begin, last in options.get("bad_word_ids", []):
        if not begin or answer[-len(begin) :] == begin:
            scores[last] = NONE
    if case["mask"] is not None:
        scores = [
            score if case["mask"][token_id // 32] >> token_id % 32 & 1 else NONE
            for token_id, score in zip(ids, scores, strict=True)
        ]
    if len(answer) + 1 <= options.get("min_tokens", 0):
        without = [NONE if token_id in case["end_ids"] else scores[token_id] for token_id in ids]
        if case["mask"] is None or max(without) > NONE:
            scores = without
    return scores


def filtered(scores: Sequence[float], options: dict[str, Any]) -> dict[int, float]:
    """The IDs that the filters leave, with their scores over temperature."""
    largest = max(scores)
    left = {
        token_id: (score - largest) / options.get("temperature", 1.0)
        for token_id, score in enumerate(scores)
        if score > NONE
    }
    if options.get("min_p", 0.0) > 0:
        left = {token_id: score for token_id, score in left.items() if score >= math.log(options["min_p"])}
    if 0 < options.get("top_k", 0) < len(left):
        threshold = sorted(left.values(), reverse=True)[options["top_k"] - 1]
        left = {token_id: score for token_id, score in left.items() if score >= threshold}
    tail = 1 - options.get("top_p", 1.0)
    if tail > 0:
        total, cumulated = sum(map(math.exp, left.values())), 0.0
        order = sorted(left, key=lambda token_id: (left[token_id], token_id))
        for token_id in order[:-1]:
            cumulated += math.exp(left[token_id]) / total
            if cumulated <= tail:
                del left[token_id]
    return left


def draw(case: dict[str, Any]) -> int | None:
    """The token, or None where there is none."""
    scores, options = adjusted(case), case["options"]
    if max(scores) == NONE:
        return None
    if options.get("temperature", 1.0) == 0:
        return scores.index(max(scores))
    key = noise_key(int(options["seed"]), len(case["answer_ids"]) + 1)
    sums = {token_id: s + noise(noise_bits(key, token_id)) for token_id, s in filtered(scores, options).items()}
    return max(sums, key=lambda token_id: sums[token_id])
