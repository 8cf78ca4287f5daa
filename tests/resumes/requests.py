"""What the streams ask for: one kind for each option, and a mix of them all.

A kind's parameters keep at least 3 bits a token and let its option change at least 30 % of the tokens: a stream that
couldn't go wrong would prove nothing.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, cast

from tests.formats import FORMATS
from tests.workers import LIMITS
from tokenrelay.shared import options
from tokenrelay.worker.text import encode_prompt

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch

    from tokenrelay.shared.options import Submission
    from tokenrelay.worker.serving.prompts import PromptReader

    _Parts = tuple[dict[str, Any], dict[str, Any]]

PROMPTS: Final = (
    "What is the weather today?",
    "Will it rain in Oslo tomorrow?",
    "How warm is it?",
    "Tell me about the wind.",
)
_WORDS: Final = 400
_LEVEL: Final = 70.0
_LAST_LETTERS: Final = "esdtnryalgohmk"
_UNLIKELY: Final = "\u2603"


@dataclass(frozen=True, slots=True)
class Asked:
    """One request, and what it would be without the option under test."""

    name: str
    kind: str
    prompt_ids: tuple[int, ...]
    submission: Submission
    bare: Submission


class Requests:
    """Makes requests for one model.

    score: gives the model's raw scores behind each of some tokens, (tokens, vocab). tokens: an answer's limit.
    """

    def __init__(
        self,
        reader: PromptReader,
        score: Callable[[Sequence[int]], torch.Tensor],
        end_ids: frozenset[int],
        tokens: int,
        seed: int,
    ) -> None:
        self.tokens = tokens
        self.rng = random.Random(seed)
        self._reader = reader
        self._score = score
        self._end_ids = sorted(end_ids)
        self._vocabulary = reader.capabilities.vocabulary
        self._words = self._whole_words()

    def make(self, kind: str, number: int) -> Asked:
        """A request of a kind, with a prompt and a seed of its own. Its options are within a request's bounds."""
        prompt = self.rng.choice(PROMPTS)
        base, chosen = KINDS[kind](self)
        common = {"prompt": prompt, "seed": self.rng.getrandbits(62), "max_new_tokens": self.tokens, "temperature": 3.0}
        common |= {"ignore_eos": "min_tokens" not in chosen and "response_format" not in chosen, **base}
        bare, full = map(self._validated, (common, {**common, **chosen}))
        ids = tuple(encode_prompt(self._reader.encoder, prompt))
        return Asked(f"{kind}-{number}", kind, ids, full, bare)

    @staticmethod
    def _validated(chosen: dict[str, Any]) -> Submission:
        return options.filled(options.validate(cast("Submission", chosen), LIMITS))

    def _whole_words(self) -> dict[int, str]:
        """Tokens that are a word behind a blank, wherever the tokenizer meets it."""
        ids, found = list(range(self._vocabulary)), dict[int, str]()
        self.rng.shuffle(ids)
        for token_id in ids:
            written = self._reader.token_bytes(token_id)
            if re.fullmatch(rb" [A-Za-z]{3,}", written) and len(found) < _WORDS:
                word = written.decode()
                if self._reader.encoder.encode(word, add_special_tokens=False) == [token_id]:
                    found[token_id] = word.strip()
        return found

    def ids(self, count: int) -> list[int]:
        """Of any tokens."""
        return self.rng.sample(range(self._vocabulary), min(count, self._vocabulary))

    def few(self, count: int, temperature: float) -> dict[str, Any]:
        """An answer of few words alone, about equally likely, so that they come again and what was written matters."""
        ids = self.rng.sample(sorted(self._words), count)
        likely = self._score(self.rng.choices(ids, k=self.tokens)).mean(dim=0)
        biases = {str(token_id): _LEVEL - float(likely[token_id]) for token_id in ids}
        return {"temperature": temperature, "logit_bias": biases}

    def barred_pairs(self) -> _Parts:
        """Of 32 words, some likelier than the others, each may not be followed by 8 of its own."""
        few = self.few(32, 2.0)
        ids = [int(token_id) for token_id in few["logit_bias"]]
        likely = ids[:10]
        few["logit_bias"] |= {str(each): few["logit_bias"][str(each)] + 4.0 for each in likely}
        words = [
            f"{self._words[first]} {self._words[second]}"
            for first in ids
            for second in (*self.rng.sample(likely, 6), *self.rng.sample(ids[10:], 2))
        ]
        return few, {"bad_words": words}

    def early_ends(self) -> _Parts:
        """Without `min_tokens` they would end soon: by the model's own end or one of `stop_token_ids`."""
        stops = self.rng.sample(sorted(self._words), 8)
        biases = {str(token_id): 24.0 for token_id in (*stops, *self._end_ids)}
        return (
            {"logit_bias": biases, "stop_token_ids": stops, "ignore_eos": False},
            {"min_tokens": self.tokens * self.rng.randint(1, 3) // 4},
        )

    def stops(self) -> dict[str, Any]:
        """Nearly each word's last letter may begin a stop string; what ends an answer are two begins of words."""
        held = [letter + _UNLIKELY for letter in _LAST_LETTERS]
        ends = [self._words[token_id][:3] for token_id in self.rng.sample(sorted(self._words), 2)]
        return {"stop": held + ends, "include_stop_str_in_output": self.rng.random() < 0.5}

    def quotes(self) -> dict[str, Any]:
        """Short strings: within a long one the grammar changes few tokens."""
        quote = next(each for each in range(self._vocabulary) if self._reader.token_bytes(each) == b'"')
        return {"temperature": 4.0, "logit_bias": {str(quote): 27.0}}

    def format(self) -> dict[str, Any]:
        return {"response_format": FORMATS[self.rng.choice(sorted(FORMATS))].option}

    def mix(self) -> dict[str, Any]:
        """Each option with half a chance, moderate, so that none of them leaves the others nothing to do."""
        rng = self.rng
        possible: tuple[dict[str, Any], ...] = (
            {"logit_bias": {str(token_id): rng.uniform(-6, 6) for token_id in self.ids(800)}},
            {"repetition_penalty": rng.uniform(1.2, 3.0)},
            {"frequency_penalty": rng.uniform(-0.5, 2.0)},
            {"presence_penalty": rng.uniform(-2.0, 2.0)},
            {"bad_words": [self._words[token_id] for token_id in rng.sample(sorted(self._words), 100)]},
            {"min_tokens": rng.randint(2, self.tokens)},
            {"min_p": rng.uniform(0.01, 0.1)},
            {"top_k": rng.randint(40, 400)},
            {"top_p": rng.uniform(0.8, 0.98)},
            {"stop_token_ids": self.ids(8)},
            {**self.stops()},
            {"logprobs": True, "top_logprobs": rng.randint(0, 3)},
            self.format(),
        )
        chosen = [option for option in possible if rng.random() < 0.5]
        return {name: value for option in chosen for name, value in option.items()}


KINDS: Final[dict[str, Callable[[Requests], _Parts]]] = {
    "logit_bias": lambda make: ({}, {"logit_bias": {str(each): make.rng.uniform(6, 20) for each in make.ids(1024)}}),
    "repetition_penalty": lambda make: (make.few(48, 1.5), {"repetition_penalty": 1.07}),
    "frequency_penalty": lambda make: (make.few(32, 1.2), {"frequency_penalty": 2.0}),
    "presence_penalty": lambda make: (make.few(96, 0.75), {"presence_penalty": 2.0}),
    "penalties": lambda make: (
        make.few(40, 1.5),
        {"repetition_penalty": 1.05, "frequency_penalty": 1.5, "presence_penalty": 1.0},
    ),
    "bad_words": lambda make: make.barred_pairs(),
    "min_tokens": lambda make: make.early_ends(),
    "min_p": lambda _: ({"temperature": 4.0}, {"min_p": 0.1}),
    "top_k": lambda _: ({}, {"top_k": 40}),
    "top_p": lambda _: ({}, {"top_p": 0.6}),
    "stop": lambda make: ({}, make.stops()),
    "logprobs": lambda _: ({}, {"logprobs": True, "top_logprobs": 5}),
    "json_schema": lambda _: ({}, {"response_format": FORMATS["json_schema"].option}),
    "json_object": lambda make: (make.quotes(), {"response_format": FORMATS["json_object"].option}),
    "regex": lambda _: ({"temperature": 4.0}, {"response_format": FORMATS["regex"].option}),
    "choice": lambda _: ({"temperature": 8.0}, {"response_format": FORMATS["choice"].option}),
    "lark": lambda _: ({"temperature": 4.0}, {"response_format": FORMATS["lark"].option}),
    "mix": lambda make: ({}, make.mix()),
}
"""What each kind of stream asks for: what it is compared with, and the option under test."""
