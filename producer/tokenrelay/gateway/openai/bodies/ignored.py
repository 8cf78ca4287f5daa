"""Names of a request's ignored fields, for a response header and for the log."""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

log = logging.getLogger(__name__)

HEADER: Final = "X-Tokenrelay-Ignored"
_MOST: Final = 20
_MOST_CHARS: Final = 80
_STRANGE: Final = re.compile(r"[^A-Za-z0-9_.-]")


def listed(names: Iterable[str]) -> str:
    """The names in one line, sanitized for a header and a log: the caller chooses them."""
    clean = list(dict.fromkeys(_STRANGE.sub("?", name)[:_MOST_CHARS] or "?" for name in names))
    more = [f"and-{len(clean) - _MOST}-more"] if len(clean) > _MOST else []
    return ", ".join([*clean[:_MOST], *more])


def header(names: Iterable[str]) -> dict[str, str]:
    """The response header; empty if nothing was ignored."""
    line = listed(names)
    return {HEADER: line} if line else {}


def report(request_id: str, names: Iterable[str]) -> None:
    """Log the ignored fields in one line."""
    if line := listed(names):
        log.info("request %s: ignored the fields %s", request_id, line)
