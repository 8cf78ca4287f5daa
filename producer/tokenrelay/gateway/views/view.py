"""A request's stream in one output format: each entry is encoded once for all readers."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from tokenrelay.shared.wire.entries import Unknown

if TYPE_CHECKING:
    from tokenrelay.shared.wire.entries import AnyEntry, Entry, EntryId


class Encoder(Protocol):
    """Encodes a stream's entries in order, from the first on."""

    def encode(self, entry: Entry) -> list[bytes]:
        """The entry's events: none, one or several."""
        ...


@dataclass(slots=True, eq=False)
class View:
    """`events` are in order; a reader's position is an index into them."""

    encoder: Encoder
    events: list[bytes] = field(default_factory=list)
    _entry_ids: list[EntryId] = field(default_factory=list)
    _ends: list[int] = field(default_factory=list)

    def receive(self, entry: AnyEntry) -> None:
        """Encode the stream's next entry. Unknown events of a newer version are skipped."""
        if not isinstance(entry, Unknown):
            self.events += self.encoder.encode(entry)
        self._entry_ids.append(entry.entry_id)
        self._ends.append(len(self.events))

    def position_after(self, entry_id: EntryId) -> int:
        """The position after all events of the entry and of earlier ones."""
        count = bisect_right(self._entry_ids, entry_id)
        return self._ends[count - 1] if count else 0
