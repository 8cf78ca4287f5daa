"""`python -m tests.draw_resumes`: streams with each option of the draw, and with mixes of them, resumed anywhere.

Each runs undisturbed on one engine, and from a random token on, in other company, on an engine of its own model. Then a
plain forward pass of the model draws each position again, which has to give the stream; it also measures that the
option matters: the entropy of what was drawn from, and the share of tokens that come out differently without it.
"""

from __future__ import annotations

import argparse
import math
import random
import sys
from collections import defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import torch
from rich.console import Console
from rich.table import Table

from tokenrelay.worker.engine.contract import EngineRequest
from tokenrelay.worker.engine.output_queue import OutputQueue
from tokenrelay.worker.engine.transformers.batching import TransformersEngine
from tokenrelay.worker.engine.transformers.kv_cache import EngineSettings
from tokenrelay.worker.engine.transformers.models import load_model
from tokenrelay.worker.models import weather_model_path
from tokenrelay.worker.sampling.draw import draw_scores
from tokenrelay.worker.sampling.params import SamplingParams
from tokenrelay.worker.sampling.redraw import first_difference, redraw
from tokenrelay.worker.sampling.row import Row

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tokenrelay.worker.engine.transformers.models import LoadedModel
    from tokenrelay.worker.sampling.row import TokenMask

SLOTS: Final = 16
PROMPTS: Final = (
    "What is the weather today?",
    "Will it rain in Oslo tomorrow?",
    "How warm is it?",
    "Tell me about the wind.",
)


@dataclass(frozen=True, slots=True)
class Stream:
    """One request and what it answered undisturbed."""

    kind: str
    bare: SamplingParams
    """Without the option."""
    request: EngineRequest
    answer: tuple[int, ...]
    reason: str | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of the streams of one kind."""

    streams: int
    identical: int
    verified: int
    tokens: int
    bits: float
    """Mean entropy of the distribution that a token was drawn from."""
    changed: float
    """Share of tokens that the same draw without the option would not have given."""


class Suite:
    """The streams of one model; `loaded` twice, for two engines."""

    def __init__(self, load: Callable[[], LoadedModel], tokens: int, temperature: float, seed: int) -> None:
        self._first, self._second, self._plain = load(), load(), load()
        self.tokens = tokens
        self._temperature = temperature
        self._choices = random.Random(seed)
        self._vocabulary = int(self._plain.model.config.get_text_config().vocab_size)
        self._ends = self._plain.eos_token_ids

    def run(self, streams: int) -> dict[str, Outcome]:
        """So many streams of each kind."""
        asked = [self._request(kind, number) for kind in KINDS for number in range(streams)]
        self._choices.shuffle(asked)
        whole = self._generate(self._first, [request for *_, request in asked])
        streamed = [Stream(kind, bare, request, *whole[request.engine_id]) for kind, bare, request in asked]
        cut = [(stream, self._choices.randint(0, len(stream.answer))) for stream in streamed]
        self._choices.shuffle(cut)
        resumed = self._generate(
            self._second, [replace(each.request, emitted_ids=each.answer[:place]) for each, place in cut]
        )
        identical = {
            each.request.engine_id
            for each, place in cut
            if resumed[each.request.engine_id] == (each.answer[place:], each.reason)
        }
        by_kind: dict[str, list[Stream]] = defaultdict(list)
        for stream in streamed:
            by_kind[stream.kind].append(stream)
        return {kind: self._outcome(by_kind[kind], identical) for kind in KINDS}

    def _request(self, kind: str, number: int) -> tuple[str, SamplingParams, EngineRequest]:
        prompt_ids = tuple(self._plain.tokenizer(self._choices.choice(PROMPTS))["input_ids"])
        seed = self._choices.getrandbits(62)
        base, options = KINDS[kind](self)
        bare = replace(SamplingParams(self._temperature, 0, 1.0, seed), **base)
        params = replace(bare, **options)
        masked = kind == "mask" or (kind == "mix" and self._choices.random() < 0.3)
        request = EngineRequest(
            f"{kind}-{number}",
            prompt_ids,
            (),
            self.tokens,
            params,
            ignore_eos=not params.min_tokens,
            token_mask=self._mask if masked else None,
        )
        return kind, bare, request

    def _mask(self, emitted_ids: Sequence[int]) -> torch.Tensor:
        """Half of the vocabulary, another half after each answer, and the end tokens."""
        state = sum((index + 1) * token_id for index, token_id in enumerate(emitted_ids))
        words = torch.randint(
            -(2**31), 2**31, (-(-self._vocabulary // 32),), generator=torch.Generator().manual_seed(state)
        )
        return words.to(torch.int32)

    def some_ids(self, count: int) -> list[int]:
        return self._choices.sample(range(self._vocabulary), min(count, self._vocabulary))

    def bias(self) -> tuple[tuple[int, float], ...]:
        return tuple((token_id, self._choices.uniform(-6, 6)) for token_id in self.some_ids(1024))

    def ends(self) -> tuple[tuple[int, float], ...]:
        """Without `min_tokens` the end would be drawn at most places."""
        return tuple((end, 20.0) for end in self._ends)

    def few(self) -> dict[str, Any]:
        """Of 24 tokens, so that they come again and penalties have something to do."""
        return {"temperature": 1.4, "logit_bias": tuple((token_id, 60.0) for token_id in self.some_ids(24))}

    def barred_pairs(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Half of the pairs of few tokens: what is barred depends on the token before."""
        few = self.few()
        ids = [token_id for token_id, _ in few["logit_bias"]]
        pairs = [(first, second) for first in ids for second in ids if self._choices.random() < 0.5]
        return few, {"bad_words": tuple(pairs)}

    def mix(self) -> dict[str, Any]:
        """Each option with half a chance."""
        chosen = [kind for kind in KINDS if kind not in ("mix", "mask") and self._choices.random() < 0.5]
        return {name: value for kind in chosen for part in KINDS[kind](self) for name, value in part.items()}

    def _generate(
        self, loaded: LoadedModel, requests: Sequence[EngineRequest]
    ) -> dict[str, tuple[tuple[int, ...], str | None]]:
        engine, queue = TransformersEngine(loaded, EngineSettings(slots=SLOTS)), OutputQueue()
        engine.start(queue.deliver)
        tokens: dict[str, list[int]] = {request.engine_id: [] for request in requests}
        ends: dict[str, str | None] = {}
        try:
            for request in requests:
                engine.add(request)
            while len(ends) < len(requests):
                for output in queue.get(60.0):
                    tokens[output.engine_id] += output.token_ids
                    if output.is_last:
                        ends[output.engine_id] = output.error.code if output.error else output.finish_reason
        finally:
            engine.stop()
        return {engine_id: (tuple(tokens[engine_id]), ends[engine_id]) for engine_id in tokens}

    def _outcome(self, streams: Sequence[Stream], identical: set[str]) -> Outcome:
        verified, tokens, changed, entropy = 0, 0, 0, 0.0
        for stream in streams:
            request, answer = stream.request, stream.answer
            ends = frozenset(request.sampling.stop_token_ids) | (frozenset() if request.ignore_eos else self._ends)
            start = Row(request.sampling, request.prompt_ids, (), ends)
            scores = self._scores(request.prompt_ids, answer)
            until = len(answer) + (stream.reason != "length")
            verified += first_difference(scores[:until], start, answer, request.token_mask) is None
            without = redraw(scores[: len(answer)], replace(start, params=stream.bare), answer)
            changed += sum(drawn != token_id for drawn, token_id in zip(without, answer, strict=True))
            entropy += sum(bits(scores, start, answer, request.token_mask))
            tokens += len(answer)
        same = sum(stream.request.engine_id in identical for stream in streams)
        return Outcome(len(streams), same, verified, tokens, entropy / max(tokens, 1), changed / max(tokens, 1))

    def _scores(self, prompt_ids: tuple[int, ...], answer: tuple[int, ...]) -> torch.Tensor:
        """(tokens of the answer + 1, vocab), as the engine hands them to the draw: float32."""
        with torch.no_grad():
            ids = torch.tensor([[*prompt_ids, *answer]])
            logits: torch.Tensor = self._plain.model(input_ids=ids, use_cache=False).logits
        return logits[0, len(prompt_ids) - 1 :].float()


def bits(scores: torch.Tensor, start: Row, answer: Sequence[int], token_mask: TokenMask | None = None) -> list[float]:
    """The entropy of what each token of an answer was drawn from: the draw's own scores without their noise.

    scores: (tokens, vocab), raw. start: the request before its first token.
    """
    found = []
    for place in range(len(answer)):
        mask = None if token_mask is None else token_mask(answer[:place])
        row = replace(start, emitted_ids=answer[:place], mask=mask)
        drawn = draw_scores(scores[place : place + 1], [row])
        unfiltered = replace(row, params=SamplingParams(1.0, 0, 1.0, row.params.seed), mask=None)
        chances = (drawn - draw_scores(torch.zeros_like(scores[:1]), [unfiltered])).softmax(dim=-1)
        found.append(float(torch.special.entr(chances).sum()) / math.log(2))
    return found


KINDS: Final[dict[str, Callable[[Suite], tuple[dict[str, Any], dict[str, Any]]]]] = {
    "logit_bias": lambda suite: ({}, {"logit_bias": suite.bias()}),
    "repetition": lambda _: ({"temperature": 1.5, "top_k": 24}, {"repetition_penalty": 3.0}),
    "frequency": lambda suite: (suite.few(), {"frequency_penalty": 2.0}),
    "presence": lambda suite: (suite.few(), {"presence_penalty": -2.0}),
    "penalties": lambda suite: (
        suite.few(),
        {"repetition_penalty": 1.3, "frequency_penalty": 1.5, "presence_penalty": 1.0},
    ),
    "bad_words": lambda suite: suite.barred_pairs(),
    "min_tokens": lambda suite: ({"logit_bias": suite.ends()}, {"min_tokens": suite.tokens * 3 // 4}),
    "min_p": lambda _: ({}, {"min_p": 0.03}),
    "filters": lambda _: ({}, {"top_k": 40, "top_p": 0.9}),
    "mask": lambda _: ({}, {}),
    "mix": lambda suite: ({}, suite.mix()),
}
"""What each kind of stream asks for: what its draws are compared with, and the option that changes them."""


def main() -> int:
    parser = argparse.ArgumentParser(description="Streams with the draw's options, resumed at random tokens")
    parser.add_argument("--model", default=str(weather_model_path()))
    parser.add_argument("--dtype", default="float64")
    parser.add_argument("--streams", type=int, default=50, help="of each kind")
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--temperature", type=float, default=3.0)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    suite = Suite(
        lambda: load_model(asked.model, device="cpu", dtype=asked.dtype), asked.tokens, asked.temperature, asked.seed
    )
    outcomes = suite.run(asked.streams)
    table = Table("kind", "streams", "identical", "verified", "tokens", "bits", "changed")
    for kind, each in outcomes.items():
        shown = (each.streams, each.identical, each.verified, each.tokens)
        table.add_row(kind, *map(str, shown), f"{each.bits:.1f}", f"{each.changed:.0%}")
    Console().print(table)
    return 0 if all(each.streams == each.identical == each.verified for each in outcomes.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
