"""Encoding of one server-sent event to bytes."""

from __future__ import annotations

import json
from typing import Any, Final

COMMENT: Final = b": waiting\n"
"""Keep-alive comment for proxies; clients ignore it. No blank line behind it: the openai package takes one for the end
of an event without data, once an event had an ID."""


def encode(data: dict[str, Any] | str, *, event: str | None = None, entry_id: object = None) -> bytes:
    """The event's bytes; `data` is written as JSON on one line, or as is if it's a string. `entry_id`: the event's ID.

    JSON escapes line ends and NUL, so model output can't end the event or start another.
    """
    text = data if isinstance(data, str) else _json(data)
    identity = "" if entry_id is None else f"id: {entry_id}\n"
    kind = "" if event is None else f"event: {event}\n"
    return f"{identity}{kind}data: {text}\n\n".encode()


def _json(data: dict[str, Any]) -> str:
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    # Lone surrogates (bytes in Redis that aren't UTF-8) can't be encoded; JSON can escape them.
    return text if text.isprintable() or _encodable(text) else json.dumps(data, separators=(",", ":"))


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
