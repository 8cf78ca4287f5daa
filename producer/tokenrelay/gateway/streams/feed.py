"""One followed request: its entries read so far, its views, and its readers.

A feed does no I/O: the hub reads for it. It keeps all entries that Redis still had, so that a reader can resume
anywhere and every view is built from the same entries.

A reader that has received all of a view's events is *caught up*. New events are broadcast to all caught-up readers in
one loop: waking one task per reader would cost several times the write.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from dataclasses import replace
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from tokenrelay.gateway.http.chunks import frame_chunk
from tokenrelay.gateway.http.problems import RangeGone
from tokenrelay.gateway.views.view import View
from tokenrelay.shared.errors import StreamChanged, TokenRelayError
from tokenrelay.shared.wire.entries import AnyEntry, Ended, EntryId, Token, parse_entry
from tokenrelay.shared.wire.transitions import StreamMachine

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tokenrelay.gateway.records.record import Record
    from tokenrelay.gateway.views.view import Encoder

    Write = Callable[[bytes], bool]
    """Writes the whole chunk without blocking and returns True, or writes nothing and returns False."""


class Feed:
    """A request's stream in this process while it has readers here."""

    def __init__(self, record: Record) -> None:
        self.record = record
        self.request_id = record.request_id
        self.entries: list[AnyEntry] = []
        self.readers = 0
        self.error: TokenRelayError | None = None
        self._machine = StreamMachine(self.request_id)
        self._rechecked_to: EntryId | None = None
        self._views: dict[str, View] = {}
        self._caught_up: dict[View, dict[asyncio.Future[int], Write]] = {}
        self.loaded = asyncio.Event()
        """Set once the backlog at the first reader's arrival has been read."""
        self.has_output = asyncio.Event()
        """Set with the first token, the terminal event, or an error."""
        self.finished = asyncio.Event()
        """Set with the terminal event or an error."""

    @property
    def over(self) -> bool:
        return self.finished.is_set()

    @property
    def ended(self) -> Ended | None:
        last = self.entries[-1] if self.entries else None
        return last if isinstance(last, Ended) else None

    @property
    def last_id(self) -> EntryId | None:
        return self.entries[-1].entry_id if self.entries else None

    @property
    def read_from(self) -> str:
        """Start of the next read: the last entry, read again to check that it hasn't changed."""
        if self._rechecked_to is not None:
            return str(self._rechecked_to)
        return str(self.last_id) if self.last_id else "-"

    @property
    def rechecking(self) -> bool:
        """Whether the stream was rewritten after a failover and is being compared with the entries already sent."""
        return self._rechecked_to is not None

    def receive(self, raw: Sequence[tuple[Any, Any]]) -> None:
        """Receive raw entries from `read_from` on. Raises StreamGap, StreamChanged, ProtocolError."""
        entries = [parse_entry(raw_id, fields) for raw_id, fields in raw]
        if not self.entries and entries:
            self._start_at(entries[0])
        last_id = self.last_id
        known = [entry for entry in entries if last_id is not None and entry.entry_id <= last_id]
        # The last entry has another time, or is missing before later entries: lost and rewritten, so recheck all.
        if (
            self.entries
            and entries
            and not self.rechecking
            and (not known or known[-1].at_us != self.entries[-1].at_us)
        ):
            self._rechecked_to = self.entries[0].entry_id
            return
        for entry in known:
            self._compare(entry)
        if self.rechecking and entries:
            self._rechecked_to = None if entries[-1].entry_id >= self.entries[-1].entry_id else entries[-1].entry_id
        if new := [entry for entry in entries[len(known) :] if self._machine.receive(entry)]:
            self._append(new)

    def _compare(self, now: AnyEntry) -> None:
        """Raises StreamChanged if an entry that was already sent differs. New events between sent ones are dropped."""
        place = bisect_left(self.entries, now.entry_id, key=attrgetter("entry_id"))
        before = self.entries[place]
        if before.entry_id != now.entry_id:
            return
        if replace(before, at_us=now.at_us) != now and any(isinstance(each, Token | Ended) for each in (before, now)):
            raise StreamChanged(f"entry {now.entry_id} has changed: Redis lost writes")
        self.entries[place] = now

    def _start_at(self, first: AnyEntry) -> None:
        """Start at the stream's first entry: an operator may have trimmed it."""
        token = first.entry_id.token - isinstance(first, Token)
        self._machine = StreamMachine(self.request_id, after=token)

    def _append(self, new: list[AnyEntry]) -> None:
        self.entries += new
        if new[-1].entry_id.token:
            self.has_output.set()
        for view in self._views.values():
            position = len(view.events)
            for entry in new:
                view.receive(entry)
            self._broadcast(view, position)
        if self.ended:
            self._close()

    def fail(self, error: TokenRelayError) -> None:
        """End the feed with an error, which its readers get."""
        if not self.over:
            self.error = error
            self.loaded.set()
            self._close()

    def _broadcast(self, view: View, position: int) -> None:
        """Write the events from `position` on to the caught-up readers; one that refuses has fallen behind."""
        caught_up = self._caught_up.get(view)
        if caught_up and (body := b"".join(view.events[position:])):
            chunk = frame_chunk(body)
            for behind in [reader for reader, write in caught_up.items() if not write(chunk)]:
                _wake(behind, position)
                del caught_up[behind]

    def _close(self) -> None:
        self.finished.set()
        self.has_output.set()
        for view, caught_up in self._caught_up.items():
            for reader in caught_up:
                _wake(reader, len(view.events))
        self._caught_up.clear()

    async def follow(self, view: View, write: Write, timeout_s: float | None = None) -> int | None:
        """Broadcast new chunks to `write` until it refuses one or the stream ends. Returns the reader's position.

        The reader must be caught up with the view, and the stream must not have ended. Returns None after the timeout,
        with the reader still caught up.
        """
        reader: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        caught_up = self._caught_up.setdefault(view, {})
        caught_up[reader] = write
        try:
            await asyncio.wait((reader,), timeout=timeout_s)
            return reader.result() if reader.done() else None
        finally:
            caught_up.pop(reader, None)

    def view(self, name: str, encoder: Callable[[], Encoder]) -> View:
        """The view of that name, built from all entries so far on first use."""
        view = self._views.get(name)
        if view is None:
            view = self._views[name] = View(encoder())
            for entry in self.entries:
                view.receive(entry)
        return view

    @property
    def has_beginning(self) -> bool:
        """Whether the feed has the stream's first entry."""
        return bool(self.entries) and self.entries[0].entry_id == EntryId(0, 1)

    def check_position(self, after: EntryId) -> None:
        """Raises RangeGone if `after` is before the first entry left or after the last one."""
        if not self.entries:
            return
        first, last = self.entries[0].entry_id, self.entries[-1].entry_id
        oldest = EntryId(first.token, max(first.event - 1, 0))
        if isinstance(self.entries[0], Token):
            oldest = EntryId(first.token - 1, 0)
        if not oldest <= after <= last:
            raise RangeGone(
                f"request {self.request_id}: can't resume after {after}; the stream has entries {first} to {last}",
                request_id=self.request_id,
                first=str(first),
                last=str(last),
            )


def _wake(reader: asyncio.Future[int], position: int) -> None:
    if not reader.done():  # its client may have just disconnected
        reader.set_result(position)
