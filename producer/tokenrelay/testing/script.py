"""Scripts for a scripted worker: the outcome of one request. Pure: no I/O, no clock, no threads."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from tokenrelay.shared.store.requests import TerminalEvent
from tokenrelay.shared.wire.entries import State

if TYPE_CHECKING:
    from tokenrelay.shared.options import Submission

_WORD: Final = re.compile(r"\s*(?:\w+|[^\w\s])|\s+$")


@dataclass(frozen=True, slots=True)
class HandBack:
    """The worker hands the request back after token `after`: it drains, or it dies (`crashed`)."""

    after: int
    crashed: bool


@dataclass(frozen=True, slots=True)
class Script:
    """The outcome of one request. Created by `answers`, `fails` or `stalls`; its methods return modified copies."""

    tokens: tuple[str, ...]
    end: TerminalEvent | None
    """None: it never ends."""
    wait_s: float = 0.0
    pause_s: float = 0.0
    hand_backs: tuple[HandBack, ...] = ()

    def delayed(self, seconds: float) -> Script:
        """The worker claims the request after this delay; until then it stays `queued`."""
        return replace(self, wait_s=seconds)

    def paced(self, seconds: float) -> Script:
        """Wait this long before each token."""
        return replace(self, pause_s=seconds)

    def migrating(self, after: int, *, crashed: bool = False) -> Script:
        """Another worker takes over after token `after`: the stream gets a `migrated` event.

        `crashed` counts as a worker's death: after three in a row without a token the request fails as poison. May be
        called several times; the takeovers happen in the order in which they were added.
        """
        return replace(self, hand_backs=(*self.hand_backs, HandBack(after, crashed)))

    def within(self, request: Submission) -> Script:
        """The script limited by this request's stop strings and `max_new_tokens`."""
        return self._stopped(request["stop"])._limited(request["max_new_tokens"])

    def _stopped(self, stop: list[str]) -> Script:
        answer = "".join(self.tokens)
        places = [place for place in (answer.find(text) for text in stop) if place >= 0]
        if not places:
            return self
        kept, left = [], min(places)
        for token in self.tokens:
            kept.append(token[:left])
            left -= len(token)
            # The token in which the stop string starts is written with the text before it.
            if left < 0:
                break
        return replace(self, tokens=tuple(kept), end=_completed())

    def _limited(self, most: int | None) -> Script:
        if most is None or len(self.tokens) <= most:
            return self
        return replace(self, tokens=self.tokens[:most], end=TerminalEvent(State.INCOMPLETE, "length"))


def answers(*texts: str, held: str = "") -> Script:
    """The request completes. A single text is split into one token per word; several texts are the exact tokens.

    `held`: text in the terminal event that no token has, as when it was held back for a possible stop string.
    """
    return Script(pieces(*texts), _completed(held))


def fails(code: str = "internal_error", message: str = "scripted to fail", *, after: str = "") -> Script:
    """The request fails, after the text `after`."""
    return Script(pieces(after), TerminalEvent(State.FAILED, "error", code=code, message=message))


def stalls(*, after: str = "") -> Script:
    """The request stalls after the text `after`, until it's cancelled or its deadline passes."""
    return Script(pieces(after), None)


def _completed(held: str = "") -> TerminalEvent:
    return TerminalEvent(State.COMPLETED, "stop", held)


def pieces(*texts: str) -> tuple[str, ...]:
    """`texts` as tokens: a single text is split into words and punctuation, each with the blanks before it."""
    return tuple(_WORD.findall(texts[0])) if len(texts) == 1 else texts
