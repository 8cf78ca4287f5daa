"""One server-sent event as bytes. Encoded once, sent to every reader."""

from __future__ import annotations

import json
from typing import Any, Final

COMMENT: Final = b": waiting\n\n"
"""Keeps proxies from closing a silent connection; clients ignore it."""


def encode(data: dict[str, Any] | str, *, event: str | None = None, entry_id: object = None) -> bytes:
    """The event with `data` as JSON on one line, or as it is where it's a string. `entry_id`: a client resumes there.

    JSON escapes line ends and NUL, so nothing that a model writes can end the event or begin another.
    """
    text = data if isinstance(data, str) else _json(data)
    identity = "" if entry_id is None else f"id: {entry_id}\n"
    kind = "" if event is None else f"event: {event}\n"
    return f"{identity}{kind}data: {text}\n\n".encode()


def _json(data: dict[str, Any]) -> str:
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    # A lone surrogate (bytes in Redis that aren't UTF-8) has no encoding; as an escape JSON carries it.
    return text if text.isprintable() or _encodable(text) else json.dumps(data, separators=(",", ":"))


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
