"""The requests under test, and what an undisturbed run answers. A text that couldn't go wrong would prove nothing."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tests.formats import FORMATS, format_of
from tests.streams import parsed
from tests.waiting import wait_until
from tokenrelay.producer import Producer
from tokenrelay.shared.wire import keys
from tokenrelay.shared.wire.answer import assemble
from tokenrelay.shared.wire.entries import State, text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.faults.site import Site
    from tests.formats import AnswerFormat
    from tokenrelay.producer import Answer, Entry, Generation, Options, Submission
    from tokenrelay.shared.wire.entries import Token, TokenLogprob

TOKENS: Final = 128
POOL: Final = 48
"""Requests of a run of the suite; each stream is one of them."""
TEMPERATURE: Final = 3.0
ENDED_S: Final = 90.0
ENDS: Final = ((State.INCOMPLETE, "length"), (State.COMPLETED, "stop"))
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


_HELD: Final = [letter + "\u2603" for letter in "esdtnry"]
"""Stop strings that many words may begin, and that none comes to: their text is held back for a token."""
_OF_THE_DRAW: Final[tuple[Options, ...]] = (
    {},
    {"top_p": 0.95},
    {"top_k": 50},
    {"frequency_penalty": -0.3, "presence_penalty": 0.5},
    {"repetition_penalty": 1.5},
    {"min_p": 0.01, "repetition_penalty": 0.8},
    {"logit_bias": {str(token_id): 3.0 for token_id in range(400, 1200)}},
    {"bad_words": ["the", "sunny and", "in the", "warm", "rain", "is"], "frequency_penalty": 0.4},
)
_OPTIONS: Final[tuple[Options, ...]] = (
    *_OF_THE_DRAW,
    {"logprobs": True, "frequency_penalty": 1.0},
    {"response_format": FORMATS["json_schema"].option, "presence_penalty": 0.5},
    {"response_format": FORMATS["regex"].option, "logprobs": True, "top_logprobs": 2},
    {"min_tokens": 100, "ignore_eos": False, "stop_token_ids": [*range(600, 640)], "stop": _HELD},
    {"response_format": FORMATS["json_object"].option},
    {"response_format": FORMATS["lark"].option, "min_p": 0.01, "stop": _HELD},
    {"response_format": FORMATS["choice"].option, "logprobs": True},
    {
        "response_format": FORMATS["json_object"].option,
        "logit_bias": {str(token_id): 2.0 for token_id in range(400, 1200)},
        "repetition_penalty": 1.2,
        "frequency_penalty": 0.3,
        "presence_penalty": 0.2,
        "bad_words": ["the", "sunny and", "rain"],
        "min_tokens": 64,
        "min_p": 0.005,
        "top_k": 400,
        "top_p": 0.98,
        "stop": _HELD,
        "logprobs": True,
        "top_logprobs": 3,
    },
)
"""Of each request in sixteen; every fourth is greedy."""

Piece = tuple[str, int, "tuple[TokenLogprob, ...]"]
"""A token's text, ID and log-probabilities."""


@dataclass(frozen=True, slots=True)
class Text:
    """One request and what it must come to: its tokens, the terminal event's own text, and how it ends."""

    submission: Submission
    tokens: tuple[Piece, ...] = ()
    rest: str = ""
    state: State = State.INCOMPLETE
    finish_reason: str = "length"

    @property
    def format(self) -> AnswerFormat | None:
        """What a complete answer matches."""
        return format_of(self.submission)


def piece(token: Token) -> Piece:
    """What is compared of a token."""
    return token.text, token.token_id, token.logprobs


def requests(number: int, seed: int, tokens: int = TOKENS) -> list[Submission]:
    """One in four is greedy; most have an option that depends on the tokens before, or that ends the answer early."""
    return _requests(number, seed, tokens, _OPTIONS)


def long_requests(number: int, seed: int, tokens: int) -> list[Submission]:
    """Requests with options of the draw alone, which any engine knows: they all have so many tokens."""
    return _requests(number, seed, tokens, _OF_THE_DRAW)


def _requests(number: int, seed: int, tokens: int, options: Sequence[Options]) -> list[Submission]:
    rng = random.Random(seed)
    made: list[Submission] = []
    for index in range(number):
        chosen = options[index % len(options)]
        made.append(
            {
                "prompt": rng.choice(_PROMPTS),
                "seed": rng.randrange(2**53),
                "max_new_tokens": tokens,
                "temperature": 0.0 if index % 4 == 0 else TEMPERATURE,
                "ignore_eos": "response_format" not in chosen,
                **chosen,
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
        may_end = "response_format" in submission or not submission.get("ignore_eos")
        assert answer.attempts == 1, answer
        assert may_end or len(answer.tokens) == submission["max_new_tokens"], answer
        assert (answer.state, answer.finish_reason) in ENDS, answer
        tokens = tuple(piece(token) for token in answer.tokens)
        rest = answer.text[len("".join(text for text, *_ in tokens)) :]
        texts.append(Text(submission, tokens, rest, answer.state, answer.finish_reason))
    return texts
