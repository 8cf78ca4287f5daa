"""One run of a fault: submit, wait for the moment, break something, mend it, wait for the end, compare."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from tests.faults.load import await_end, entries, submit
from tests.waiting import wait_until
from tokenrelay.producer import Consumer
from tokenrelay.shared.errors import TokenRelayError
from tokenrelay.shared.wire import keys
from tokenrelay.shared.wire.entries import Migrated, Started, text

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence

    from tests.faults.load import Text
    from tests.faults.site import Site, Worker
    from tests.faults.verdict import Tally
    from tokenrelay.shared.redis.commands import Batch
    from tokenrelay.shared.wire.entries import Entry

STEP_S: Final = 0.02
RQ_AGREES_S: Final = 15.0
QUEUE: Final = keys.queue("weather", "default")


class Follower(threading.Thread):
    """A consumer's copy of one stream, as its tokens come, through the public API."""

    def __init__(self, url: str, streams_url: str, request_id: str) -> None:
        super().__init__(name=f"consumer {request_id}", daemon=True)
        self._url, self._streams_url = url, streams_url
        self.request_id = request_id
        self.copy: list[Entry] = []
        self.error: TokenRelayError | None = None
        self.start()

    def run(self) -> None:
        try:
            with Consumer(self._url, streams_url=self._streams_url) as consumer:
                for entry in consumer.get(self.request_id).entries():
                    self.copy.append(entry)
        except TokenRelayError as error:
            self.error = error


class Round:
    """The streams of one run, and the moment of its fault."""

    def __init__(self, site: Site, tally: Tally, rng: random.Random, texts: Sequence[Text], url: str = "") -> None:
        self.site = site
        self.tally = tally
        self.rng = rng
        self.texts = texts
        self.request_ids = submit(site, [text.submission for text in texts])
        self.victim = rng.choice(self.request_ids)
        """The stream by which the moment is told."""
        self.fault_us = 0
        urls = (url, url) if url else (site.server.url, site.streams.url)
        self.followers = [Follower(*urls, each) for each in self.request_ids[:2]]

    def await_moment(self, share: float | None = None) -> None:
        """Wait for token k of the victim, k uniform over the stream, and then for any part of a step.

        k = 0 is the prefill, the last k the finish.
        """
        length = len(self.texts[self.request_ids.index(self.victim)].tokens)
        k = self.rng.randint(0, length) if share is None else int(share * length)
        stream = keys.stream(self.victim)
        if k == 0:
            wait_until(lambda: self.site.redis.xlen(stream) >= 2, 30)
        end = time.monotonic() + 60
        while k > 0 and not self.site.redis.xread({stream: f"{k - 1}-99"}, count=1, block=1000):
            if time.monotonic() > end:
                raise AssertionError(f"{self.victim} came to no token {k}")
        time.sleep(self.rng.uniform(0, STEP_S))
        self.mark()

    def mark(self) -> None:
        """The fault is now."""
        self.fault_us = time.time_ns() // 1000

    def started(self) -> Worker:
        """The worker of the victim, as soon as it has one."""
        wait_until(lambda: len(entries(self.site, [self.victim])[0]) >= 2, 30)
        claims = [e for e in entries(self.site, [self.victim])[0] if isinstance(e, Started | Migrated)]
        return self.site.worker(claims[-1].worker)

    def finish(self, *, further: bool = False) -> None:
        """Wait for the end of all, compare, and add it to the tally. `further` streams are no run of their own."""
        try:
            await_end(self.site, self.request_ids)
        except AssertionError:
            self.tally.broken.append(f"run {self.tally.runs}: not all streams ended; logs in {self.site.folder}")
        streams = entries(self.site, self.request_ids)
        fields = self.site.pipeline.run([("HGET", keys.rq_job(each), "enqueued_at") for each in self.request_ids])
        for request_id, stream, expected, enqueued_at in zip(
            self.request_ids, streams, self.texts, fields, strict=True
        ):
            self.tally.receive(request_id, stream, expected)
            if self.fault_us:
                with suppress(AssertionError):
                    self.tally.receive_gap(stream, self.fault_us, text(enqueued_at or b""))
        for follower in self.followers:
            follower.join(20)
            self.tally.require(follower.error is None, f"a consumer of {follower.request_id}: {follower.error}")
            whole = streams[self.request_ids.index(follower.request_id)]
            self.tally.receive_copy(follower.request_id, follower.copy, whole)
        self._look_at_rq()
        self.tally.runs += not further

    def _look_at_rq(self) -> None:
        """RQ must come to say the same: its jobs are finished, and nothing is claimed any more."""

        def agrees() -> bool:
            batch: Batch = [("HGET", keys.rq_job(each), "status") for each in self.request_ids]
            batch += [("ZSCORE", keys.claimed(QUEUE), each) for each in self.request_ids]
            return set(self.site.pipeline.run(batch)) == {b"finished", None}

        try:
            wait_until(agrees, RQ_AGREES_S)
        except AssertionError:
            self.tally.broken.append(f"run {self.tally.runs}: RQ doesn't say that the requests have ended")
