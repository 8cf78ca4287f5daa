"""Errors of third-party code in one line."""

from __future__ import annotations

from typing import Final

_LONGEST: Final = 300


def one_line(error: BaseException) -> str:
    """An exception's message in one line of bounded length, with its type where the message is short."""
    words = " ".join(str(error).split())
    if len(words) < 40:
        words = f"{type(error).__name__}: {words}" if words else type(error).__name__
    return shorten(words)


def shorten(words: str) -> str:
    """A text cut to the length of a line in a log."""
    return words if len(words) <= _LONGEST else words[: _LONGEST - 3] + "..."
