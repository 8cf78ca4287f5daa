"""Could the texts under test go wrong? Their entropy, and what a resume that forgot its position makes of them.

    python -m tests.faults.control

Entropy: of the distribution that each token of an undisturbed run was drawn from, in bits. Control: each sampled stream
is resumed at a random token with the draws beginning again at position 1, as a sampler that was seeded anew would.
"""

from __future__ import annotations

import random
import sys
from typing import TYPE_CHECKING, Final

import torch
from rich.console import Console

from tests.draw_resumes import bits as bits_of
from tests.faults.load import requests
from tests.polled_engine import PolledEngine
from tokenrelay.shared.options import DEFAULTS
from tokenrelay.worker.engine.contract import EngineRequest
from tokenrelay.worker.engine.transformers.kv_cache import EngineSettings
from tokenrelay.worker.engine.transformers.models import load_model
from tokenrelay.worker.models import weather_model_path
from tokenrelay.worker.sampling.params import SamplingParams
from tokenrelay.worker.sampling.row import Row
from tokenrelay.worker.text import bad_word_ids, encode_prompt

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedTokenizerBase

    from tokenrelay.producer import Submission
    from tokenrelay.worker.engine.transformers.models import LoadedModel

LEAST_ENTROPY: Final = 2.0
LEAST_CHANGED: Final = 0.95
POOL: Final = 48


def engine_request(
    number: int, submission: Submission, prompt: Sequence[int], tokenizer: PreTrainedTokenizerBase
) -> EngineRequest:
    """The request as the worker makes it."""
    budget = submission["max_new_tokens"]
    assert budget is not None
    words = bad_word_ids(tokenizer, submission.get("bad_words", []))
    sampling = SamplingParams.of({**DEFAULTS, **submission}, words)
    return EngineRequest(f"{number}", tuple(prompt), (), budget, sampling, ignore_eos=True)


def generate(loaded: LoadedModel, wanted: Sequence[EngineRequest]) -> dict[str, list[int]]:
    """All tokens, by engine ID."""
    engine = PolledEngine(loaded, EngineSettings(slots=32, kv_cache_tokens=12800))
    engine.begin()
    made: dict[str, list[int]] = {request.engine_id: [] for request in wanted}
    waiting = set(made)
    for request in wanted:
        engine.add(request)
    while waiting:
        for output in engine.outputs(1.0):
            made[output.engine_id] += output.token_ids
            if output.finish_reason:
                waiting.discard(output.engine_id)
    engine.stop()
    return made


def entropies(loaded: LoadedModel, request: EngineRequest, tokens: Sequence[int]) -> list[float]:
    """Bits of each token's distribution, as the request's options shape it."""
    ids = torch.tensor([[*request.prompt_ids, *tokens]])
    with torch.no_grad():
        logits = loaded.model(ids).logits[0, len(request.prompt_ids) - 1 : -1].float()
    return bits_of(logits, Row(request.sampling, request.prompt_ids, ()), tokens)


def main() -> int:
    """1 where the texts are too tame to prove anything."""
    torch.set_num_threads(1)
    loaded = load_model(weather_model_path(), device="cpu", dtype="float64")
    submissions = requests(POOL, seed=1)
    prompts = [encode_prompt(loaded.tokenizer, submission["prompt"]) for submission in submissions]
    wanted = [
        engine_request(n, submission, prompt, loaded.tokenizer)
        for n, (submission, prompt) in enumerate(zip(submissions, prompts, strict=True))
    ]
    texts = generate(loaded, wanted)
    sampled = [request for request in wanted if request.sampling.temperature]
    bits = [sum(entropies(loaded, r, texts[r.engine_id])) / len(texts[r.engine_id]) for r in sampled]

    rng = random.Random(1)
    resumed = []
    for request in sampled:
        tokens = texts[request.engine_id]
        emitted = tokens[: rng.randint(1, len(tokens) - 8)]
        # The emitted tokens as part of the prompt: the next one is drawn as if it were the first.
        left = request.max_new_tokens - len(emitted)
        prompt = (*request.prompt_ids, *emitted)
        resumed.append(EngineRequest(request.engine_id, prompt, (), left, request.sampling, ignore_eos=True))
    again = generate(loaded, resumed)
    changed = sum(
        texts[request.engine_id][-request.max_new_tokens :] != again[request.engine_id] for request in resumed
    )
    console = Console()
    console.print(
        f"{len(sampled)} sampled and {len(wanted) - len(sampled)} greedy requests of {len(texts['0'])} tokens; "
        f"entropy a token: {sum(bits) / len(bits):.2f} bits on average, {min(bits):.2f} in the tamest stream\n"
        f"control: resumed with the seed reset, {changed} of {len(resumed)} sampled streams change"
    )
    return 0 if min(bits) >= LEAST_ENTROPY and changed / len(resumed) > LEAST_CHANGED else 1


if __name__ == "__main__":
    sys.exit(main())
