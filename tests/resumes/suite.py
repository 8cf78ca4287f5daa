"""Streams of every kind: undisturbed on one engine, then handed over at random tokens to an engine of its own model."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.formats import format_of
from tests.resumes.cuts import places
from tests.resumes.measures import measure, raw_scores
from tests.resumes.requests import KINDS, Requests
from tests.resumes.takeovers import Worker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from tests.resumes.measures import Measured
    from tests.resumes.requests import Asked
    from tests.resumes.takeovers import Answer
    from tokenrelay.worker.engine.transformers.models import LoadedModel


@dataclass(frozen=True, slots=True)
class Stream:
    """One request, its undisturbed answer, and what that is worth."""

    asked: Asked
    answer: Answer
    measured: Measured


@dataclass(slots=True)
class Outcome:
    """Of the streams of one kind."""

    streams: list[Stream] = field(default_factory=list)
    takeovers: int = 0
    changed: list[str] = field(default_factory=list)
    """Takeovers after which the stream wasn't the undisturbed one: `name@token`."""
    rounded: list[str] = field(default_factory=list)
    """Those after which only log-probabilities weren't: in float32 a prefill rounds otherwise than single steps."""
    inside: Counter[str] = field(default_factory=Counter)
    """Takeovers by what they were inside of."""

    @property
    def counted(self) -> int:
        """Streams in which an error would be visible."""
        return sum(stream.measured.counts for stream in self.streams)

    @property
    def verified(self) -> int:
        return sum(stream.measured.verified for stream in self.streams)

    @property
    def unfit(self) -> list[str]:
        """Complete answers that don't match their format."""
        return [stream.asked.name for stream in self.streams if not _fits(stream)]


def _fits(stream: Stream) -> bool:
    options = stream.asked.submission
    if not stream.answer.drew_end or options["stop"] or options["stop_token_ids"]:
        return True  # cut off
    wanted = format_of(options)
    return wanted is None or wanted.matches(stream.answer.text)


def run(
    load: Callable[[], LoadedModel],
    streams: int,
    takeovers: int,
    tokens: int = 64,
    seed: int = 1,
    kinds: Iterable[str] = tuple(KINDS),
) -> dict[str, Outcome]:
    """So many streams of each kind, each handed over so many times, once at a time, by a random token.

    load: gives the model, anew for each phase: they share nothing but the streams.
    """
    rng = random.Random(seed)
    with Worker(load()) as first:
        # By another copy of the model: the engine has its own way of attention.
        plain = load()
        requests = Requests(first.reader, lambda ids: raw_scores(plain, ids), first.loaded.eos_token_ids, tokens, seed)
        asked = [requests.make(kind, number) for kind in kinds for number in range(streams)]
        rng.shuffle(asked)
        whole = dict(zip(asked_names(asked), first.generate([first.claim(each) for each in asked]), strict=True))
    cuts = [(each, rng.randint(0, len(whole[each.name].tokens))) for each in asked for _ in range(takeovers)]
    rng.shuffle(cuts)
    outcomes: dict[str, Outcome] = defaultdict(Outcome)
    with Worker(load()) as second:
        again = second.generate([second.claim(each, whole[each.name].tokens[:cut]) for each, cut in cuts])
        for (each, cut), answer in zip(cuts, again, strict=True):
            outcome, expected = outcomes[each.kind], whole[each.name]
            outcome.takeovers += 1
            outcome.inside.update(places(second.reader, each, expected.ids, cut))
            if (answer.pieces, answer.ending) != (expected.pieces, expected.ending):
                outcome.changed.append(f"{each.name}@{cut}")
            elif answer.tokens != expected.tokens:
                outcome.rounded.append(f"{each.name}@{cut}")
    with Worker(load()) as third:
        for each in asked:
            answer = whole[each.name]
            outcomes[each.kind].streams.append(Stream(each, answer, measure(third, each, answer)))
    return {kind: outcomes[kind] for kind in kinds}


def asked_names(asked: Sequence[Asked]) -> list[str]:
    return [each.name for each in asked]
