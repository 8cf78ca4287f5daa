"""Handles of a request: tokens and events as they are written, answer, status. `aio` has them for asyncio."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from tokenrelay.producer._core import endings
from tokenrelay.producer._core.following import Follower, Reading
from tokenrelay.producer.warning import warn_no_worker
from tokenrelay.shared.errors import RequestError
from tokenrelay.shared.wire.answer import Answer, Assembler
from tokenrelay.shared.wire.entries import Ended, Token, Unknown

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tokenrelay.producer._core.drivers import Driver
    from tokenrelay.producer._core.endings import Status
    from tokenrelay.shared.wire.entries import AnyEntry, Entry, Event


class Reader:
    """The state behind a request's handle, sync or asyncio: how it is read, what was read, its answer once known."""

    def __init__(self, request_id: str, *, expires: bool, block_s: float) -> None:
        self.request_id = request_id
        self.answer: Answer | None = None
        self._reading = Reading(expires, block_s, self._warn)
        self._texts: dict[int, str] = {}
        self._warned = False

    def follower(self, after: int = 0) -> Follower:
        """A new follower behind token `after`. Raises RequestError for a negative index."""
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
    """A Consumer's handle of a request.

    Every iteration reads independently, from the token that it starts behind. Any number may run at once, in any
    threads. Breaking out of one leaves the request running.
    """

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
        """Iterate over the tokens from index `after` + 1, each as soon as it is written, until the request ends.

        Raises GenerationFailed, GenerationCancelled, GenerationExpired after the last token if it ended so;
        StreamExpired, StreamGap, StreamChanged if the stream can't be read further; RedisUnusable.
        """
        for entry in self.entries(after):
            if isinstance(entry, Token):
                yield entry
            elif isinstance(entry, Ended):
                self._driver.run(endings.raise_unless_answered(self.request_id, entry))

    def events(self) -> Iterator[Event]:
        """Iterate over `Queued`, `Started`, `Migrated` events, and `Ended` last. Doesn't raise for how it ended."""
        for entry in self.entries():
            if not isinstance(entry, Token):
                yield entry

    def entries(self, after: int = 0) -> Iterator[Entry]:
        """Iterate over tokens and events behind token `after`, in stream order. Doesn't raise for how it ended.

        Events that a later version adds are skipped.
        """
        follower = self._reader.follower(after)
        while not follower.ended:
            for entry in self._driver.run(follower.read()):
                self._reader.note(entry)
                if not isinstance(entry, Unknown):
                    yield entry

    def result(self, timeout_s: float | None = None) -> Answer:
        """Wait for the whole answer of a request that completes or ends incomplete.

        Raises GenerationFailed, GenerationCancelled, GenerationExpired; StreamTimeout after `timeout_s` seconds, which
        doesn't cancel the request; StreamExpired, StreamGap, StreamChanged, RedisUnusable. A Redis that hangs may delay
        it beyond `timeout_s`: a round trip times out after 5 s and is tried four times.
        """
        if self._reader.answer is None:
            follower, assembler = self._reader.follower(), Assembler(self.request_id)
            until = None if timeout_s is None else time.monotonic() + timeout_s
            while not follower.ended:
                for entry in self._driver.run(follower.read(until)):
                    self._reader.note(entry)
                    assembler.receive(entry)
            self._reader.answer = assembler.answer()
        return endings.answer_or_raise(self._reader.answer)

    def status(self) -> Status:
        """The request's status. Raises RequestNotFound once its retention is over, RedisUnusable."""
        return self._driver.run(endings.status(self.request_id))


class Generation(ReadOnlyGeneration):
    """A Producer's handle of a request. It can cancel, and reading expires the request past its deadline."""

    def cancel(self) -> bool:
        """Cancel the request, queued or running. False if it had ended before or is gone. Raises RedisUnusable."""
        return self._driver.run(endings.cancel(self.request_id))
