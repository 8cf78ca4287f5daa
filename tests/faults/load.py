"""The requests under test, and what an undisturbed run answers. A text that couldn't go wrong would prove nothing."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tests.streams import parsed
from tests.waiting import wait_until
from tokenrelay.producer import Producer
from tokenrelay.shared.wire import keys
from tokenrelay.shared.wire.answer import assemble
from tokenrelay.shared.wire.entries import text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.faults.site import Site
    from tokenrelay.producer import Answer, Entry, Generation, Options, Submission

TOKENS: Final = 128
TEMPERATURE: Final = 3.0
ENDED_S: Final = 90.0
_PROMPTS: Final = (
    "What is the weather today?",
    "Will it rain in Oslo tomorrow?",
    "Is it cold in Helsinki this week?",
    "Tell me a story about the snow and the sun.",
    "Should I wear a coat in Bergen tonight?",
    "How windy is it at noon in Wellington?",
    "What should I wear for hiking on Saturday?",
    "Can we go sailing on Sunday afternoon?",
)


_OPTIONS: Final[tuple[Options, ...]] = (
    {},
    {"top_p": 0.95},
    {"top_k": 50},
    {"frequency_penalty": -0.3, "presence_penalty": 0.5},
    {"repetition_penalty": 1.5},
    {"min_p": 0.01, "repetition_penalty": 0.8},
    {"logit_bias": {str(token_id): 3.0 for token_id in range(20, 60)}, "min_tokens": 100},
    {"bad_words": ["the", "sunny and", "in the", "warm", "rain", "is"], "frequency_penalty": 0.4},
)
"""Of each request in eight; the first and the fifth are greedy."""


@dataclass(frozen=True, slots=True)
class Text:
    """One request and what it must come to: (text, token ID) of each token, and the terminal event's own text."""

    submission: Submission
    tokens: tuple[tuple[str, int], ...] = ()
    rest: str = ""

    @property
    def sampled(self) -> bool:
        return bool(self.submission.get("temperature"))


def requests(number: int, seed: int, tokens: int = TOKENS) -> list[Submission]:
    """One in four is greedy; most have an option of the draw that depends on the tokens before, or cuts the rest."""
    rng = random.Random(seed)
    made: list[Submission] = []
    for index in range(number):
        made.append(
            {
                "prompt": rng.choice(_PROMPTS),
                "seed": rng.randrange(2**53),
                "max_new_tokens": tokens,
                "temperature": 0.0 if index % 4 == 0 else TEMPERATURE,
                "ignore_eos": True,
                **_OPTIONS[index % len(_OPTIONS)],
            }
        )
    return made


def submit(site: Site, submissions: Sequence[Submission]) -> list[str]:
    """Through the public API; the request IDs."""
    with Producer(site.server.url, streams_url=site.streams.url) as producer:
        made: list[Generation] = producer.submit_many(submissions)
    return [generation.request_id for generation in made]


def entries(site: Site, request_ids: Sequence[str]) -> list[list[Entry]]:
    """The whole streams, as Redis has them."""
    found = site.pipeline.run([("XRANGE", keys.stream(request_id), "-", "+") for request_id in request_ids])
    return [[parsed(*_pair(item)) for item in stream] for stream in found]


def _pair(item: object) -> tuple[object, dict[object, object]]:
    assert isinstance(item, list | tuple)
    entry_id, fields = item
    if isinstance(fields, dict):
        return entry_id, fields
    return entry_id, dict(zip(fields[::2], fields[1::2], strict=True))


def ended(site: Site, request_ids: Sequence[str]) -> bool:
    states = site.pipeline.run([("HGET", keys.request(request_id), "state") for request_id in request_ids])
    return not any(text(state) in ("queued", "in_progress") for state in states)


def await_end(site: Site, request_ids: Sequence[str], timeout_s: float = ENDED_S) -> None:
    wait_until(lambda: ended(site, request_ids), timeout_s)


def undisturbed(site: Site, submissions: Sequence[Submission]) -> list[Text]:
    """The answers of an undisturbed site."""
    request_ids = submit(site, submissions)
    await_end(site, request_ids)
    texts = []
    for submission, request_id, stream in zip(submissions, request_ids, entries(site, request_ids), strict=True):
        answer: Answer = assemble(request_id, stream)
        assert (answer.attempts, len(answer.tokens)) == (1, submission["max_new_tokens"]), answer
        tokens = tuple((token.text, token.token_id) for token in answer.tokens)
        texts.append(Text(submission, tokens, answer.text[len("".join(piece for piece, _ in tokens)) :]))
    return texts
