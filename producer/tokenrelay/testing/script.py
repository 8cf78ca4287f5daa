"""What a scripted worker does with a request. Pure: no I/O, no clock, no threads."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from tokenrelay.shared.wire.entries import State

if TYPE_CHECKING:
    from tokenrelay.shared.options import Submission

_WORD: Final = re.compile(r"\s*(?:\w+|[^\w\s])|\s+$")


@dataclass(frozen=True, slots=True)
class End:
    """The terminal event that a worker writes."""

    state: State = State.COMPLETED
    finish_reason: str = "stop"
    text: str = ""
    code: str = ""
    message: str = ""


@dataclass(frozen=True, slots=True)
class HandOver:
    """The worker gives the request up behind token `after`: it drains, or it dies (`crashed`)."""

    after: int
    crashed: bool


@dataclass(frozen=True, slots=True)
class Script:
    """What happens to one request. Made by `answers`, `fails` or `stalls`; the methods give changed copies."""

    tokens: tuple[str, ...]
    end: End | None
    """None: it never ends by itself."""
    wait_s: float = 0.0
    pause_s: float = 0.0
    hand_overs: tuple[HandOver, ...] = ()

    def delayed(self, seconds: float) -> Script:
        """The worker waits so long before it takes up the request: it stays `queued`."""
        return replace(self, wait_s=seconds)

    def paced(self, seconds: float) -> Script:
        """So long passes before each token."""
        return replace(self, pause_s=seconds)

    def migrating(self, after: int, *, crashed: bool = False) -> Script:
        """Behind token `after` another worker takes the baton: the stream gets a `migrated` event.

        `crashed` counts as a worker's death: after three in a row without a token the request fails as poison. May be
        called several times; the hand-overs come in the order in which they were added.
        """
        return replace(self, hand_overs=(*self.hand_overs, HandOver(after, crashed)))

    def within(self, request: Submission) -> Script:
        """As a model would answer this request: cut before a stop string, and at `max_new_tokens`."""
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
            # The token that begins the stop string is written, with the text that comes before it.
            if left < 0:
                break
        return replace(self, tokens=tuple(kept), end=End())

    def _limited(self, most: int | None) -> Script:
        if most is None or len(self.tokens) <= most:
            return self
        return replace(self, tokens=self.tokens[:most], end=End(State.INCOMPLETE, "length"))


def answers(*texts: str, held: str = "") -> Script:
    """The request is answered. One text is cut into tokens by words; several are the tokens as they are.

    `held`: the end of the answer that no token releases, because it may begin a stop string or hold half a character;
    the terminal event brings it.
    """
    return Script(pieces(*texts), End(text=held))


def fails(code: str = "internal_error", message: str = "scripted to fail", *, after: str = "") -> Script:
    """The request fails, behind the text `after`."""
    return Script(pieces(after), End(State.FAILED, "error", code=code, message=message))


def stalls(*, after: str = "") -> Script:
    """Behind the text `after` nothing more comes: the request ends by a cancel or its deadline."""
    return Script(pieces(after), None)


def pieces(*texts: str) -> tuple[str, ...]:
    """`texts` as tokens: one is cut into words and marks, with the blanks before them."""
    return tuple(_WORD.findall(texts[0])) if len(texts) == 1 else texts
