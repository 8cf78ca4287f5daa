"""Could the texts under test go wrong? Their entropy, and what a resume that forgot its position makes of them.

    python -m tests.faults.control [FILE]

Entropy: of the distribution that each token of an undisturbed run was drawn from, in bits. Control: each sampled stream
is resumed in its middle with the draws beginning again at position 1, as a sampler that was seeded anew would. And are
they right? A plain forward pass, with the draw made again at each position, has to give each of them; so it verifies
the streams that a file holds the token IDs of, if one is given: JSON, a list for each request.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import torch
from rich.console import Console

from tests.faults.load import POOL, requests
from tests.resumes.controls import forgets_position
from tests.resumes.measures import measure
from tests.resumes.requests import Asked
from tests.resumes.suite import Stream
from tests.resumes.takeovers import Worker
from tokenrelay.shared.options import filled
from tokenrelay.worker.engine.transformers.models import load_model
from tokenrelay.worker.models import weather_model_path
from tokenrelay.worker.text import encode_prompt

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenrelay.producer import Submission
    from tokenrelay.worker.engine.transformers.models import LoadedModel

LEAST_ENTROPY: Final = 2.0
LEAST_CHANGED: Final = 0.95
LONG: Final = 16
"""Tokens; shorter answers, such as a choice, may come out the same by chance."""


def load() -> LoadedModel:
    return load_model(weather_model_path(), device="cpu", dtype="float64")


def undisturbed(submissions: Sequence[Submission]) -> list[Stream]:
    """The streams, from an engine of their own, and what they are worth."""
    with Worker(load()) as worker:
        encoder = worker.reader.encoder
        asked = [
            Asked(f"{number}", "load", tuple(encode_prompt(encoder, each["prompt"])), filled(each), filled(each))
            for number, each in enumerate(submissions)
        ]
        answers = worker.generate([worker.claim(each) for each in asked])
    with Worker(load()) as plain:
        return [Stream(each, answer, measure(plain, each, answer)) for each, answer in zip(asked, answers, strict=True)]


def main(file: str | None = None) -> int:
    """1 where the texts are too tame to prove anything, or aren't what the draw gives."""
    torch.set_num_threads(1)
    streams = undisturbed(requests(POOL, seed=1))
    sampled = [stream for stream in streams if stream.asked.submission["temperature"]]
    bits = [stream.measured.bits for stream in sampled]
    long = [stream for stream in sampled if len(stream.answer.tokens) >= LONG]
    with Worker(load()) as plain:
        changed = sum(forgets_position(plain, stream, len(stream.answer.tokens) // 2) for stream in long)
    verified = all(stream.measured.verified for stream in streams)
    ids = [list(stream.answer.ids) for stream in streams]
    same = file is None or ids == json.loads(Path(file).read_text())
    tokens, tame = sum(map(len, ids)), min(bits)
    Console().print(
        f"{len(sampled)} sampled and {len(streams) - len(sampled)} greedy requests, {tokens} tokens, "
        f"{'verified' if verified and same else 'NOT VERIFIED'} by a plain forward pass; "
        f"entropy a token: {sum(bits) / len(bits):.2f} bits on average, {tame:.2f} in the tamest stream\n"
        f"control: resumed with the seed reset, {changed} of {len(long)} sampled streams change"
    )
    return 0 if verified and same and tame >= LEAST_ENTROPY and changed / len(long) > LEAST_CHANGED else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
