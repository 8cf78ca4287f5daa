"""One followed request: its entries as far as they were read, its views, and whoever waits for more.

A feed does no I/O: the hub reads for it. It holds the whole stream from where Redis still has it, so that a reader may
begin anywhere and every view is folded from the same entries.

A reader that has all of a view's events so far is *level*. New events are written to all level readers in one go: to
wake a task for each of them would take several times what the writing does.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from dataclasses import replace
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from tokenrelay.gateway.http.chunks import framed
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
    """Writes a chunk at once and whole, and returns True; or returns False, having written nothing."""


class Feed:
    """A request's stream in this process, for as long as it has readers here."""

    def __init__(self, record: Record) -> None:
        self.record = record
        self.request_id = record.request_id
        self.entries: list[AnyEntry] = []
        self.readers = 0
        self.error: TokenRelayError | None = None
        self._machine = StreamMachine(self.request_id)
        self._checked: EntryId | None = None
        self._views: dict[str, View] = {}
        self._level: dict[View, dict[asyncio.Future[int], Write]] = {}
        self.loaded = asyncio.Event()
        """Set once all that was there when the first reader came has been read."""
        self.spoken = asyncio.Event()
        """Set with the first token, or with what is there without one: the terminal entry, or an error."""
        self.over_at = asyncio.Event()
        """Set with the terminal entry, or with an error."""

    @property
    def over(self) -> bool:
        return self.over_at.is_set()

    @property
    def ended(self) -> Ended | None:
        last = self.entries[-1] if self.entries else None
        return last if isinstance(last, Ended) else None

    @property
    def last_id(self) -> EntryId | None:
        return self.entries[-1].entry_id if self.entries else None

    @property
    def begin(self) -> str:
        """Where the next read is to begin: with the last entry, which shows whether it's still what it was."""
        if self._checked is not None:
            return str(self._checked)
        return str(self.last_id) if self.last_id else "-"

    @property
    def doubted(self) -> bool:
        """Whether the stream was written again, and is being compared with what its readers have."""
        return self._checked is not None

    def receive(self, raw: Sequence[tuple[Any, Any]]) -> None:
        """Take entries as Redis gave them, from `begin` on. Raises StreamGap, StreamChanged, ProtocolError."""
        entries = [parse_entry(raw_id, fields) for raw_id, fields in raw]
        if not self.entries and entries:
            self._begin(entries[0])
        last_id = self.last_id
        known = [entry for entry in entries if last_id is not None and entry.entry_id <= last_id]
        # Another time, or gone though something follows it: lost and written again. Is all of it what it was?
        if self.entries and entries and not self.doubted and (not known or known[-1].at_us != self.entries[-1].at_us):
            self._checked = self.entries[0].entry_id
            return
        for entry in known:
            self._compare(entry)
        if self.doubted and entries:
            self._checked = None if entries[-1].entry_id >= self.entries[-1].entry_id else entries[-1].entry_id
        if new := [entry for entry in entries[len(known) :] if self._machine.receive(entry)]:
            self._take(new)

    def _compare(self, now: AnyEntry) -> None:
        """See whether an entry that was read before says the same now. Events that are new among them come too late."""
        place = bisect_left(self.entries, now.entry_id, key=attrgetter("entry_id"))
        before = self.entries[place]
        if before.entry_id != now.entry_id:
            return
        if replace(before, at_us=now.at_us) != now and any(isinstance(each, Token | Ended) for each in (before, now)):
            raise StreamChanged(f"entry {now.entry_id} is another one now: Redis lost writes")
        self.entries[place] = now

    def _begin(self, first: AnyEntry) -> None:
        """Stand where the stream begins now: an operator may have trimmed it."""
        token = first.entry_id.token - isinstance(first, Token)
        self._machine = StreamMachine(self.request_id, after=token)

    def _take(self, new: list[AnyEntry]) -> None:
        self.entries += new
        if new[-1].entry_id.token:
            self.spoken.set()
        for view in self._views.values():
            position = len(view.events)
            for entry in new:
                view.receive(entry)
            self._push(view, position)
        if self.ended:
            self._close()

    def fail(self, error: TokenRelayError) -> None:
        """The stream can't be read on: its readers are told."""
        if not self.over:
            self.error = error
            self.loaded.set()
            self._close()

    def _push(self, view: View, position: int) -> None:
        """Write what stands behind `position` to the level readers; who refuses has fallen behind there."""
        level = self._level.get(view)
        if level and (body := b"".join(view.events[position:])):
            chunk = framed(body)
            for behind in [reader for reader, write in level.items() if not write(chunk)]:
                _let_go(behind, position)
                del level[behind]

    def _close(self) -> None:
        self.over_at.set()
        self.spoken.set()
        for view, level in self._level.items():
            for reader in level:
                _let_go(reader, len(view.events))
        self._level.clear()

    async def follow(self, view: View, write: Write, timeout_s: float | None = None) -> int | None:
        """Have `write` given each new chunk, framed, until it refuses one or the stream is over.

        Its reader must be level with the view, and the stream not over yet. Returns the reader's position then; None
        after the timeout, with the reader level.
        """
        reader: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        level = self._level.setdefault(view, {})
        level[reader] = write
        try:
            await asyncio.wait((reader,), timeout=timeout_s)
            return reader.result() if reader.done() else None
        finally:
            level.pop(reader, None)

    def view(self, name: str, encoder: Callable[[], Encoder]) -> View:
        """The view of that name, folded over all entries so far where nobody had asked for it."""
        view = self._views.get(name)
        if view is None:
            view = self._views[name] = View(encoder())
            for entry in self.entries:
                view.receive(entry)
        return view

    @property
    def whole(self) -> bool:
        """Whether the stream is here from its first entry on."""
        return bool(self.entries) and self.entries[0].entry_id == EntryId(0, 1)

    def check_position(self, after: EntryId) -> None:
        """Raises RangeGone for a place that is no longer there, or isn't yet."""
        if not self.entries:
            return
        first, last = self.entries[0].entry_id, self.entries[-1].entry_id
        oldest = EntryId(first.token, max(first.event - 1, 0))
        if isinstance(self.entries[0], Token):
            oldest = EntryId(first.token - 1, 0)
        if not oldest <= after <= last:
            raise RangeGone(
                f"request {self.request_id}: nothing can follow {after}; its stream has entries {first} to {last} now",
                request_id=self.request_id,
                first=str(first),
                last=str(last),
            )


def _let_go(reader: asyncio.Future[int], position: int) -> None:
    if not reader.done():  # its client may have left a moment ago
        reader.set_result(position)
