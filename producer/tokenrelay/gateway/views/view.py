"""A request's stream in one vocabulary, as far as it has come: each entry encoded once, for all of its readers."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from tokenrelay.shared.wire.entries import Unknown

if TYPE_CHECKING:
    from tokenrelay.shared.wire.entries import AnyEntry, Entry, EntryId


class Encoder(Protocol):
    """Takes a stream's entries from the first on, in order."""

    def encode(self, entry: Entry) -> list[bytes]:
        """The events that the entry is, none or several."""
        ...


@dataclass(slots=True, eq=False)
class View:
    """`events` are what readers are sent, in order; a reader's position is an index into them."""

    encoder: Encoder
    events: list[bytes] = field(default_factory=list)
    _entry_ids: list[EntryId] = field(default_factory=list)
    _ends: list[int] = field(default_factory=list)

    def receive(self, entry: AnyEntry) -> None:
        """Take the stream's next entry. A later version's event is none for readers."""
        if not isinstance(entry, Unknown):
            self.events += self.encoder.encode(entry)
        self._entry_ids.append(entry.entry_id)
        self._ends.append(len(self.events))

    def behind(self, entry_id: EntryId) -> int:
        """The position behind all events of an entry, and of those before it."""
        count = bisect_right(self._entry_ids, entry_id)
        return self._ends[count - 1] if count else 0
