"""A request's handle: its tokens and events as they come, its answer, its state. `aio` has the same for asyncio."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from tokenrelay.producer._core import endings
from tokenrelay.producer._core.following import Follower, Reading
from tokenrelay.producer._core.warning import warn_no_worker
from tokenrelay.shared.errors import RequestError
from tokenrelay.shared.wire.answer import Answer, Assembler
from tokenrelay.shared.wire.entries import Ended, Token, Unknown

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tokenrelay.producer._core.endings import Status
    from tokenrelay.producer._core.rounds import Driver
    from tokenrelay.shared.wire.entries import AnyEntry, Entry, Event


class Reader:
    """What the handles of one request share, sync or asyncio: how it's read, what was read, its answer once known."""

    def __init__(self, request_id: str, *, expires: bool, block_s: float) -> None:
        self.request_id = request_id
        self.answer: Answer | None = None
        self._reading = Reading(expires, block_s, self._warn)
        self._texts: dict[int, str] = {}
        self._warned = False

    def follower(self, after: int = 0) -> Follower:
        """A new reader's place, behind token `after`. Raises RequestError for a negative one."""
        if not isinstance(after, int):
            raise RequestError(f"after: {after!r} is no whole number; give a token's index, such as 3", field="after")
        if after < 0:
            raise RequestError(f"after: {after}; tokens count from 1, so 0 is the least", field="after", limit=0)
        return Follower(self.request_id, self._reading, after=after)

    def note(self, entry: AnyEntry) -> None:
        if isinstance(entry, Token):
            self._texts[entry.index] = entry.text
        elif isinstance(entry, Ended):
            self._texts[sys.maxsize] = entry.text

    @property
    def text(self) -> str:
        return "".join(self._texts[index] for index in sorted(self._texts))

    def _warn(self, queue: str) -> None:
        if not self._warned:
            self._warned = True
            warn_no_worker(self.request_id, queue)


class ReadOnlyGeneration:
    """A request, as a Consumer gives it. Every iteration reads for itself, from the token that it's asked to start
    behind; any number may run at once, in any threads. Leaving one leaves the request running."""

    def __init__(self, reader: Reader, driver: Driver) -> None:
        self._reader = reader
        self._driver = driver

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.request_id}>"

    @property
    def request_id(self) -> str:
        return self._reader.request_id

    @property
    def text(self) -> str:
        """The text that was read through this handle so far."""
        return self._reader.text

    def __iter__(self) -> Iterator[Token]:
        return self.tokens()

    def tokens(self, after: int = 0) -> Iterator[Token]:
        """Tokens `after` + 1 and on, each as soon as it's written, up to the end.

        Raises GenerationFailed, GenerationCancelled, GenerationExpired behind the last token if it ended so;
        StreamExpired, StreamGap, StreamChanged where it can't be read on; RedisUnusable.
        """
        for entry in self.entries(after):
            if isinstance(entry, Token):
                yield entry
            elif isinstance(entry, Ended):
                self._driver.run(endings.raise_unless_answered(self.request_id, entry))

    def events(self) -> Iterator[Event]:
        """`Queued`, `Started`, `Migrated` as they come, and `Ended` last. Doesn't raise for how it ended."""
        for entry in self.entries():
            if not isinstance(entry, Token):
                yield entry

    def entries(self, after: int = 0) -> Iterator[Entry]:
        """Tokens and events behind token `after`, in the stream's order. Doesn't raise for how it ended.

        An event of a later version is left out.
        """
        follower = self._reader.follower(after)
        while not follower.ended:
            for entry in self._driver.run(follower.read()):
                self._reader.note(entry)
                if not isinstance(entry, Unknown):
                    yield entry

    def result(self, timeout_s: float | None = None) -> Answer:
        """The whole answer, once it's there; `completed` and `incomplete` ones are returned.

        Raises GenerationFailed, GenerationCancelled, GenerationExpired; StreamTimeout after `timeout_s`, which cancels
        nothing; StreamExpired, StreamGap, StreamChanged, RedisUnusable. A Redis that stands still is waited for beyond
        `timeout_s`: each round trip takes up to 5 s, and is tried four times.
        """
        if self._reader.answer is None:
            follower, assembler = self._reader.follower(), Assembler(self.request_id)
            until = None if timeout_s is None else time.monotonic() + timeout_s
            while not follower.ended:
                for entry in self._driver.run(follower.read(until)):
                    self._reader.note(entry)
                    assembler.receive(entry)
            self._reader.answer = assembler.answer()
        return endings.settled(self._reader.answer)

    def status(self) -> Status:
        """What the request is now. Raises RequestNotFound once its retention is over, RedisUnusable."""
        return self._driver.run(endings.status(self.request_id))


class Generation(ReadOnlyGeneration):
    """A request, as a Producer gives it: it can be cancelled, and reading it ends it once its deadline is past."""

    def cancel(self) -> bool:
        """End it as cancelled, wherever it is. False where it had ended before, or is gone. Raises RedisUnusable."""
        return self._driver.run(endings.cancel(self.request_id))
