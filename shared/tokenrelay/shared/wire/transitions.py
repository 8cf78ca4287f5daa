"""The one state machine of a request's stream: which entry may follow which. Pure: no I/O, no clock.

The worker checks what it writes against it, every reader what it reads. Rules:

1. `queued` comes first; nothing comes after a terminal event.
2. Token indexes are contiguous from 1; event k after token N has the ID N-k, k contiguous from 1.
3. `started` comes once; every later claim is a `migrated`.
4. `expired` means that no token was written; past a deadline after the first token, the request is `incomplete`.
5. An event of a later version may stand anywhere between `queued` and the end, and changes nothing.

The diagram in docs/request-lifecycle.md is generated from TRANSITIONS.
"""

from __future__ import annotations

from typing import Final

from tokenrelay.shared.errors import ProtocolError, StreamChanged, StreamGap
from tokenrelay.shared.wire.entries import AnyEntry, Ended, EntryId, Migrated, State, Unknown

NOTHING: Final = "(no entry)"

TRANSITIONS: Final[dict[str, dict[str, str]]] = {
    NOTHING: {"queued": State.QUEUED},
    State.QUEUED: {
        "started": State.IN_PROGRESS,
        "cancelled": State.CANCELLED,
        "expired": State.EXPIRED,
    },
    State.IN_PROGRESS: {
        "token": State.IN_PROGRESS,
        "migrated": State.IN_PROGRESS,
        "completed": State.COMPLETED,
        "incomplete": State.INCOMPLETE,
        "failed": State.FAILED,
        "cancelled": State.CANCELLED,
        "expired": State.EXPIRED,
    },
    State.COMPLETED: {},
    State.INCOMPLETE: {},
    State.FAILED: {},
    State.CANCELLED: {},
    State.EXPIRED: {},
}
"""state → kind of entry → state."""


class StreamMachine:
    """Where a reader (or writer) of one stream stands. `receive` takes its entries in order.

    Made with `after=N` it stands right behind token N of a stream whose beginning it hasn't seen.
    """

    __slots__ = ("_last", "request_id", "state")

    def __init__(self, request_id: str, after: int = 0) -> None:
        self.request_id = request_id
        self.state: str = State.IN_PROGRESS if after else NOTHING
        self._last = EntryId(after, 0)

    @property
    def tokens(self) -> int:
        """How many tokens the stream had by the last entry."""
        return self._last.token

    @property
    def ended(self) -> bool:
        return self.state != NOTHING and State(self.state).terminal

    def receive(self, entry: AnyEntry) -> bool:
        """Take the next entry; False where it's an event that was seen before (readers resume from `N-0`).

        Raises StreamGap for a missing index or event, StreamChanged for a stream that ends with fewer tokens than were
        read, ProtocolError for an entry that may not come here.
        """
        entry_id = entry.entry_id
        if entry_id <= self._last:
            if isinstance(entry, Ended) and not (self.ended and entry_id == self._last):
                raise StreamChanged(
                    f"the stream ended at {entry_id}, but entries up to {self._last} were read before",
                    request_id=self.request_id,
                )
            return False
        self._check_contiguous(entry_id)
        following = self._following(entry)
        if following is None:
            raise self._refused(entry)
        if entry.kind == State.EXPIRED and entry_id.token > 0:
            raise self._refused(entry)
        if isinstance(entry, Migrated) and entry.resumed_at != entry_id.token + 1:
            raise self._refused(entry)
        self.state, self._last = following, entry_id
        return True

    def _following(self, entry: AnyEntry) -> str | None:
        """The state behind the entry; None where it may not come here."""
        if isinstance(entry, Unknown):
            return None if self.state == NOTHING or self.ended else self.state
        return TRANSITIONS[self.state].get(entry.kind)

    def _check_contiguous(self, entry_id: EntryId) -> None:
        last = self._last
        if entry_id in (EntryId(last.token + 1, 0), EntryId(last.token, last.event + 1)):
            return
        raise StreamGap(f"entry {entry_id} follows {last}: something between is missing", request_id=self.request_id)

    def _refused(self, entry: AnyEntry) -> ProtocolError:
        return ProtocolError(
            f"{entry.kind!r} at {entry.entry_id} may not follow {self._last} in state {self.state!r}; "
            f"allowed: {', '.join(TRANSITIONS[self.state]) or 'nothing'}",
            request_id=self.request_id,
        )
