"""Stop strings in a text that comes in pieces. Knows strings only."""

from __future__ import annotations


class StopMatcher:
    """Cuts a text before its first stop string, or behind it with `include`; text that may begin one is held back.

    What comes out doesn't depend on where the pieces were cut: it is the whole text up to the earliest start of any
    stop string. So a match is held while a longer stop string that began before it may still match. Of two that begin
    at one place the shorter one counts.
    """

    def __init__(self, stop: tuple[str, ...], *, include: bool = False) -> None:
        self._stop = tuple(text for text in stop if text)
        self._longest = max(map(len, self._stop), default=0)
        self._held = ""
        self._include = include
        self.stopped = False  # a stop string was found; also true after a `flush` that decided on one

    def push(self, text: str) -> tuple[str, bool]:
        """The text that is now certain, and whether a stop string ended it."""
        if self.stopped:
            return "", True
        if not self._stop:
            return text, False
        self._held += text
        match, begin = self._match(), self._possible_begin()
        if match is not None and match <= begin:
            release, self._held, self.stopped = self._held[: self._end(match)], "", True
        else:
            release, self._held = self._held[:begin], self._held[begin:]
        return release, self.stopped

    def flush(self) -> str:
        """The held text when no more comes, up to a stop string that was waiting for a longer one."""
        match = self._match()
        release, self._held = self._held[: None if match is None else self._end(match)], ""
        self.stopped = self.stopped or match is not None
        return release

    def _match(self) -> int | None:
        starts = [start for stop in self._stop if (start := self._held.find(stop)) >= 0]
        return min(starts, default=None)

    def _end(self, match: int) -> int:
        """Where the text ends that is released of a match."""
        if not self._include:
            return match
        return match + min(len(stop) for stop in self._stop if self._held.startswith(stop, match))

    def _possible_begin(self) -> int:
        """Where the longest end of the held text begins that is the beginning of a stop string."""
        held = self._held
        for begin in range(max(len(held) - self._longest + 1, 0), len(held)):
            if any(stop.startswith(held[begin:]) and len(stop) > len(held) - begin for stop in self._stop):
                return begin
        return len(held)
