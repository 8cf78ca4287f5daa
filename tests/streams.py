"""Valid streams as entries and as raw replies."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from hypothesis import strategies as st

from tokenrelay.shared.wire.entries import (
    Ended,
    Entry,
    EntryId,
    Migrated,
    Queued,
    Started,
    State,
    Token,
    Unknown,
    Usage,
    parse_entry,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

REQUEST_ID: Final = "r" * 22


def parsed(raw_id: object, fields: Mapping[Any, Any]) -> Entry:
    """A raw entry of a known kind."""
    found = parse_entry(raw_id, fields)
    assert not isinstance(found, Unknown)
    return found


def token(index: int, text: str = "") -> Token:
    return Token(index, text or f" t{index}", index + 100, 1_000 + index)


def queued() -> Queued:
    return Queued(EntryId(0, 1), 900, 1, {"a": 1})


def started(event: int = 2) -> Started:
    return Started(EntryId(0, event), 950, "w1", 1, "weather", 7, 42)


def migrated(entry_id: EntryId, attempt: int = 2) -> Migrated:
    return Migrated(entry_id, 990, f"w{attempt}", attempt, entry_id.token + 1)


def ended(entry_id: EntryId, state: State = State.COMPLETED, text: str = "") -> Ended:
    return Ended(entry_id, 2_000, state, "stop", text, Usage(7, entry_id.token))


def entry(kind: str, entry_id: EntryId) -> Entry:
    """An entry of a kind, as it could stand at `entry_id`."""
    match kind:
        case "token":
            return token(entry_id.token)
        case "queued":
            return replace(queued(), entry_id=entry_id)
        case "started":
            return started(entry_id.event)
        case "migrated":
            return migrated(entry_id)
    return ended(entry_id, State(kind))


@st.composite
def whole_streams(draw: st.DrawFn) -> list[Entry]:
    """A stream from `queued` to its terminal event: up to 8 tokens, takeovers anywhere."""
    entries: list[Entry] = [queued()]
    tokens, attempt = draw(st.integers(0, 8)), 1
    if tokens or draw(st.booleans()):
        entries.append(started())
    for index in range(tokens + 1):
        event = entries[-1].entry_id.event
        for _ in range(draw(st.integers(0, 2)) if len(entries) > 1 else 0):
            attempt, event = attempt + 1, event + 1
            entries.append(migrated(EntryId(index, event), attempt))
        if index < tokens:
            entries.append(token(index + 1, draw(st.text(max_size=3)) or " "))
    claimed = [State.COMPLETED, State.INCOMPLETE, State.FAILED, State.CANCELLED]
    ends = claimed if tokens else [State.CANCELLED, State.EXPIRED, *(claimed if len(entries) > 1 else [])]
    last = entries[-1].entry_id
    entries.append(ended(EntryId(last.token, last.event + 1), draw(st.sampled_from(ends)), draw(st.text(max_size=3))))
    return entries


def raw(fields: dict[str, Any]) -> dict[bytes, bytes]:
    """Fields as a redis-py client without decoding returns them."""
    return {name.encode(): str(value).encode() for name, value in fields.items()}
