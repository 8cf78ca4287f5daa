"""`python scripts/sampling_vectors.py`: writes the draw's test vectors, docs/sampling-vectors.json, from the draw.

They stay as they are within a version of the draw: a test compares them.
"""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import torch

from tokenrelay.worker.sampling.adjustments import adjusted
from tokenrelay.worker.sampling.draw import DRAW_VERSION, draw_scores
from tokenrelay.worker.sampling.params import SamplingParams
from tokenrelay.worker.sampling.row import Row
from tokenrelay.worker.sampling.sampler import gumbel_noise, noise_bits, noise_key

FILE: Final = Path(__file__).parents[1] / "docs" / "sampling-vectors.json"
VOCABULARY: Final = 40
_MASK64: Final = 2**64 - 1
_SEEDS: Final = (0, 1, 42, 2**53 - 1, 2**63 - 1)
_POSITIONS: Final = (1, 2, 1000, 2**31)
_IDS: Final = (0, 1, 2, 31, 49_151, 151_935)
_CLEAR_CHOICE: Final = 1e-3
_CLEAR_EDGE: Final = 1e-4
_ALLOWED: Final = {"token mask": 25, "all": 25, "no token left": 0}
"""Cases with a token mask, and how many tokens it allows."""
_PLAIN: Final = SamplingParams(temperature=1.0, top_k=0, top_p=1.0, seed=0)


def vectors() -> dict[str, Any]:
    return {"draw": DRAW_VERSION, "noise": _noise(), "draws": _draws()}


def _noise() -> list[dict[str, Any]]:
    cases = []
    for seed in _SEEDS:
        for position in _POSITIONS:
            key = torch.tensor([noise_key(seed, position)])
            bits, noise = noise_bits(key, max(_IDS) + 1)[0], gumbel_noise(key, max(_IDS) + 1)[0]
            cases.append(
                {
                    "seed": str(seed),
                    "position": str(position),
                    "key": hex(int(key) & _MASK64),
                    "ids": list(_IDS),
                    "bits": [hex(int(bits[token_id]) & _MASK64) for token_id in _IDS],
                    "noise": [round(float(noise[token_id]), 6) for token_id in _IDS],
                }
            )
    return cases


def _options(words: random.Random) -> dict[str, dict[str, Any]]:
    """Options of each stage alone, and of all together."""
    ids = range(VOCABULARY)
    bias = {str(token_id): words.choice([-100, -2.5, 0.3, 4]) for token_id in words.sample(ids, 3)}
    stages: dict[str, dict[str, Any]] = {
        "nothing": {},
        "logit_bias": {"logit_bias": bias},
        "repetition_penalty": {"repetition_penalty": words.choice([0.8, 1.1, 2.0])},
        "frequency_penalty": {"frequency_penalty": words.choice([-1.5, 0.7, 2.0])},
        "presence_penalty": {"presence_penalty": words.choice([-2.0, 0.4, 1.3])},
        "bad_words": {"bad_word_ids": [[words.choice(ids)], [words.choice(ids), words.choice(ids)]]},
        "min_tokens": {"min_tokens": words.choice([1, 3, 8])},
        "temperature": {"temperature": words.choice([0.0, 0.3, 2.5])},
        "min_p": {"min_p": words.choice([0.02, 0.2, 0.9])},
        "top_k": {"top_k": words.choice([1, 5, 30, 1000])},
        "top_p": {"top_p": words.choice([0.1, 0.6, 0.95])},
        "token mask": {},
        "no token left": {},
    }
    stages["all"] = {name: value for options in stages.values() for name, value in options.items()}
    return stages


def _draws(rounds: int = 14) -> list[dict[str, Any]]:
    words = random.Random(19)
    cases = []
    for _ in range(rounds):
        for name, options in _options(words).items():
            while (case := _case(name, options, words)) is None:
                pass
            cases.append(case)
    return cases


def _case(name: str, options: dict[str, Any], words: random.Random) -> dict[str, Any] | None:
    """One draw; None where rounding might decide it."""
    answer = words.choices(range(VOCABULARY), k=words.randrange(6))
    if "bad_word_ids" in options:  # so that its prefix is sometimes there
        answer += options["bad_word_ids"][1][: words.randrange(2)]
    row = Row(
        _params({"seed": words.getrandbits(63), **options}),
        words.choices(range(VOCABULARY), k=words.randint(1, 5)),
        answer,
        frozenset(words.sample(range(VOCABULARY), 2)),
        _bitmask(words.sample(range(VOCABULARY), _ALLOWED[name])) if name in _ALLOWED else None,
    )
    logits = torch.tensor([[words.randint(-512, 512) / 64 for _ in range(VOCABULARY)]])
    logits[0, words.randrange(VOCABULARY)] = logits.max()
    if not _is_clear(logits, row):
        return None
    scores = adjusted(logits, {0: row})[0]
    drawn = draw_scores(logits, [row])[0]
    kept = drawn.isfinite().nonzero().squeeze(1).tolist() if row.params.temperature else None
    return {
        "name": name,
        "options": {**options, "seed": str(row.params.seed)},
        "logits": logits[0].tolist(),
        "prompt_ids": list(row.prompt_ids),
        "answer_ids": list(row.emitted_ids),
        "end_ids": sorted(row.end_ids),
        "mask": None if row.mask is None else row.mask.tolist(),
        "adjusted": [None if score == -torch.inf else score for score in scores.tolist()],
        "kept": kept,
        "token": int(drawn.argmax()) if bool(drawn.isfinite().any()) else None,
    }


def _params(options: dict[str, Any]) -> SamplingParams:
    given = {name: value for name, value in options.items() if name not in ("logit_bias", "bad_word_ids")}
    return replace(
        _PLAIN,
        **given,
        logit_bias=tuple((int(token_id), bias) for token_id, bias in options.get("logit_bias", {}).items()),
        bad_words=tuple(map(tuple, options.get("bad_word_ids", []))),
    )


def _is_clear(logits: torch.Tensor, row: Row) -> bool:
    """Whether the choice and the filters' edges keep their distance, so that no library's rounding decides."""
    drawn = draw_scores(logits, [row])[0]
    best = drawn.topk(2).values
    if bool(best.isfinite().all()) and float(best[0] - best[1]) < _CLEAR_CHOICE:
        return False
    params = row.params
    near = [
        replace(params, top_p=params.top_p + move if params.top_p < 1 else 1.0, min_p=params.min_p * (1 + move))
        for move in (-_CLEAR_EDGE, _CLEAR_EDGE)
    ]
    kept = drawn.isfinite()
    return all(torch.equal(draw_scores(logits, [replace(row, params=each)])[0].isfinite(), kept) for each in near)


def _bitmask(allowed: list[int]) -> torch.Tensor:
    words = [0] * -(-VOCABULARY // 32)
    for token_id in allowed:
        words[token_id // 32] |= 1 << token_id % 32
    return torch.tensor([word - (word >> 31 << 32) for word in words], dtype=torch.int32)


def page(content: dict[str, Any]) -> str:
    """The file's text: a line for each case."""
    parts = [f'"draw": {content["draw"]}']
    for name in ("noise", "draws"):
        lines = ",\n".join(json.dumps(case, separators=(",", ":")) for case in content[name])
        parts.append(f'"{name}": [\n{lines}\n]')
    return "{" + ",\n".join(parts) + "}\n"


if __name__ == "__main__":
    FILE.write_text(page(vectors()), "utf-8")
