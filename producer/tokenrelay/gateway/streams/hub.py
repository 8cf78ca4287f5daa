"""The hub: reads Redis for all followed requests of a process, independent of the number of readers.

Workers publish each step's request IDs on the wake channel; the hub then reads the followed ones in one pipeline.
Pub/sub may lose messages, so a periodic sweep reads all followed streams; it also detects deleted keys and expired
deadlines.
"""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from redis.exceptions import RedisError, ResponseError

from tokenrelay.gateway.streams.feed import Feed
from tokenrelay.producer._core.endings import expire
from tokenrelay.shared.errors import ProtocolError, RedisUnusable, StreamError, TokenRelayError
from tokenrelay.shared.redis.batches import AsyncPipeline
from tokenrelay.shared.redis.commands import server_time, server_time_us
from tokenrelay.shared.redis.connections import is_for_now
from tokenrelay.shared.redis.servers import subscription
from tokenrelay.shared.store import request_view
from tokenrelay.shared.store.record import RequestRecord, look
from tokenrelay.shared.store.request_view import RequestView
from tokenrelay.shared.wire import keys
from tokenrelay.shared.wire.entries import text
from tokenrelay.shared.wire.keys import Plane

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

    from tokenrelay.gateway.http.tasks import Background
    from tokenrelay.gateway.records.record import Record
    from tokenrelay.gateway.streams.counters import GatewayCounters
    from tokenrelay.producer._core.drivers import AsyncDriver
    from tokenrelay.shared.redis.commands import Batch

log = logging.getLogger(__name__)

SWEEP_S: Final = 1.0
"""Delivery delay when a wake message is lost."""
_STREAMS_PER_READ: Final = 64
"""Streams per pipeline; a longer one would delay other readers while its replies are parsed."""
_COUNT: Final = 512
_AGAIN_S: Final = 0.2
_LISTEN_S: Final = 10.0


class Hub:
    """Owns the feeds. Background tasks, started with `start`, read for them."""

    def __init__(self, driver: AsyncDriver, counters: GatewayCounters) -> None:
        self.counters = counters
        self.feeds: dict[str, Feed] = {}
        self._driver = driver
        self._pipeline = AsyncPipeline(*driver.servers)
        self._due: dict[str, None] = {}
        self._scheduled = asyncio.Event()

    def attach(self, record: Record) -> Feed:
        """The request's feed, with one more reader. Release it with `detach`."""
        feed = self.feeds.get(record.request_id)
        if feed is None:
            feed = self.feeds[record.request_id] = Feed(record)
            self._schedule((record.request_id,))
        feed.readers += 1
        return feed

    def detach(self, feed: Feed) -> None:
        """Remove a reader; a feed without readers is dropped."""
        feed.readers -= 1
        if not feed.readers and self.feeds.get(feed.request_id) is feed:
            del self.feeds[feed.request_id]

    async def catch_up(self, feed: Feed) -> None:
        """Read one feed now: the client may have seen more at another gateway. Raises RedisUnusable."""
        try:
            await self._read([feed.request_id])
        except RedisError as error:
            raise self._driver.servers.explain(error, Plane.TOKEN) from error

    def start(self, background: Background) -> None:
        """Start the background tasks, which retry through Redis outages."""
        for work in (self._listen, self._read_scheduled, self._sweep):
            background.run_forever(f"hub.{work.__name__.lstrip('_')}", partial(self._retry_on_outage, work))

    async def _retry_on_outage(self, work: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await work()
            except (RedisError, OSError, RedisUnusable) as error:
                self.counters.redis_errors.add("follow")
                log.warning("Redis: %s; retrying", error)
                await asyncio.sleep(_AGAIN_S)

    def _schedule(self, request_ids: Iterable[str]) -> None:
        """Schedule a read of those requests that are followed here."""
        self._due.update((request_id, None) for request_id in request_ids if request_id in self.feeds)
        if self._due:
            self._scheduled.set()

    async def _listen(self) -> None:
        async with subscription(self._driver.servers, keys.WAKE, keys.ENDED) as pubsub:
            self._schedule(self.feeds)  # published before we subscribed
            while True:
                # On timeout redis-py sends a health check, which detects a dead peer.
                message = await pubsub.get_message(ignore_subscribe_messages=True, timeout=_LISTEN_S)
                if message is not None:
                    self._schedule(text(message["data"]).split())

    async def _read_scheduled(self) -> None:
        while True:
            await self._scheduled.wait()
            self._scheduled.clear()
            due, self._due = list(self._due), {}
            for start in range(0, len(due), _STREAMS_PER_READ):
                part = due[start : start + _STREAMS_PER_READ]
                try:
                    await self._read(part)
                except (RedisError, OSError):
                    self._schedule(due[start:])
                    raise

    async def _read(self, request_ids: Sequence[str]) -> None:
        feeds = [feed for feed in map(self.feeds.get, request_ids) if feed is not None]
        batch: Batch = []
        for feed in feeds:
            batch.append(("XRANGE", keys.stream(feed.request_id), feed.read_from, "+", "COUNT", _COUNT))
        if not batch:
            return
        for feed, raw in zip(feeds, await self._pipeline.run(batch), strict=True):
            if isinstance(raw, ResponseError) and not is_for_now(raw):
                feed.fail(ProtocolError(f"request {feed.request_id} can't be read: {raw}"))
            elif isinstance(raw, Exception):
                raise raw
            else:
                self._receive(feed, raw)

    def _receive(self, feed: Feed, raw: list[Any]) -> None:
        known, rechecking = len(feed.entries), feed.rechecking
        try:
            feed.receive(raw)
            self.counters.count_received(feed.record, feed.entries, known)
        except TokenRelayError as error:
            feed.fail(error)
        except Exception as error:  # noqa: BLE001  logged; affects this request only
            _fail_unreadable(feed, error)
        if len(raw) >= _COUNT or (feed.rechecking and not rechecking):
            self._schedule((feed.request_id,))
        elif feed.entries:
            feed.loaded.set()
        # An empty stream: the sweep checks whether its keys are gone.

    async def _sweep(self) -> None:
        while True:
            open_feeds = [feed for feed in self.feeds.values() if not feed.over]
            for start in range(
                0, max(len(open_feeds), 1), _STREAMS_PER_READ
            ):  # also without feeds, to sample the clock
                await self._check(open_feeds[start : start + _STREAMS_PER_READ])
            await asyncio.sleep(SWEEP_S)

    async def _check(self, feeds: Sequence[Feed]) -> None:
        """Sample Redis's clock, and check the hashes of followed requests for deletion and expired deadlines."""
        batch: Batch = []
        for feed in feeds:
            batch += [look(feed.request_id, request_view.FIELDS), ("XLEN", keys.stream(feed.request_id))]
        self.counters.clock.start_sample()
        *looks, time = await self._pipeline.run([*batch, server_time(Plane.TOKEN)])
        now_us = server_time_us(time)
        self.counters.clock.finish_sample(now_us)
        for feed, held, length in zip(feeds, looks[::2], looks[1::2], strict=True):
            if isinstance(held, Exception) or isinstance(length, Exception):
                continue  # wrong key type: reading the stream reports it
            try:
                overdue = _is_overdue(feed, RequestRecord(request_view.FIELDS, held), length, now_us)
            except Exception as error:  # noqa: BLE001  as above
                _fail_unreadable(feed, error)
                continue
            if overdue:
                await self._expire(feed)
        self._schedule(feed.request_id for feed in feeds)

    async def _expire(self, feed: Feed) -> None:
        try:
            await self._driver.run(expire(feed.request_id))
        except RedisUnusable as error:
            cause = error.__cause__
            if isinstance(cause, ResponseError) and not is_for_now(cause):
                _fail_unreadable(feed, error)
            else:
                log.warning("request %s is overdue: %s", feed.request_id, error)  # the next sweep tries again
        except Exception as error:  # noqa: BLE001  as above
            _fail_unreadable(feed, error)


def _is_overdue(feed: Feed, record: RequestRecord, length: int, now_us: int) -> bool:
    """Whether the request is overdue and hasn't been expired. Fails the feed if its stream is gone or lost writes."""
    try:
        request_view.check_stream(feed.request_id, exists=record.exists and bool(length))
        view = RequestView.of(feed.request_id, record, now_us)
        if feed.last_id is not None:
            view.check_read(feed.last_id)
    except StreamError as error:
        feed.fail(error)
        return False
    return not view.state.terminal and view.overdue_in_s(may_expire=True) < 0


def _fail_unreadable(feed: Feed, error: Exception) -> None:
    """Fail one feed whose data in Redis can't be parsed, by a bug or a newer version. Other feeds are unaffected."""
    log.exception("request %s can't be read", feed.request_id, exc_info=error, extra={"request_id": feed.request_id})
    message = f"request {feed.request_id} can't be read: {error}"
    feed.fail(ProtocolError(message, request_id=feed.request_id))
