"""The stream in our own format: one event per entry, with the entry ID as the event's ID."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from tokenrelay.gateway.views.sse import encode
from tokenrelay.shared.wire.entries import Token

if TYPE_CHECKING:
    from tokenrelay.shared.wire.entries import Entry


class RawEncoder:
    """`event:` is the entry's kind, `data:` its fields."""

    def encode(self, entry: Entry) -> list[bytes]:
        """Exactly one event."""
        return [encode(fields(entry), event=entry.kind, entry_id=entry.entry_id)]


def fields(entry: Entry) -> dict[str, Any]:
    """An entry's fields, without its ID and kind."""
    if isinstance(entry, Token):
        token = {"index": entry.index, "text": entry.text, "token_id": entry.token_id, "at_us": entry.at_us}
        return {**token, "logprobs": [each.as_json() for each in entry.logprobs]} if entry.logprobs else token
    left_out = ("entry_id", "kind", "state")
    return {name: value for name, value in asdict(entry).items() if name not in left_out and value is not None}
