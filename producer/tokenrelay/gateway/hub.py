"""The hub: one reader of Redis for all followed requests of a process, however many clients read them.

A worker announces every step on the wake channel; the streams that somebody here follows are then read in one pipeline.
Pub/sub loses messages, so all of them are read now and then without being told: the sweep, which is also what notices
keys that are gone and deadlines that have passed.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Final

from redis.exceptions import RedisError, ResponseError

from tokenrelay.gateway.feed import Feed
from tokenrelay.producer.endings import expire, server_time_us
from tokenrelay.shared import keys
from tokenrelay.shared.commands import AsyncPipeline
from tokenrelay.shared.connections import address, explain
from tokenrelay.shared.entries import State, text
from tokenrelay.shared.errors import ProtocolError, StreamChanged, StreamExpired, TokenRelayError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    import redis.asyncio

    from tokenrelay.gateway.figures import Figures
    from tokenrelay.gateway.records import Record
    from tokenrelay.producer.rounds import AsyncDriver
    from tokenrelay.shared.commands import Batch

log = logging.getLogger(__name__)

SWEEP_S: Final = 1.0
"""How late a reader hears of what nobody announced."""
_A_READ: Final = 64
"""Streams in one pipeline: readers of others don't wait for a longer one to be parsed."""
_COUNT: Final = 512
_AGAIN_S: Final = 0.2
_LISTEN_S: Final = 10.0
_OWNER_GRACE_US: Final = 1_000_000
"""How long past the deadline the worker that owns a request may take to end it itself."""


class Hub:
    """Owns the feeds. The tasks of `start` read for them."""

    def __init__(self, driver: AsyncDriver, figures: Figures) -> None:
        self.figures = figures
        self.feeds: dict[str, Feed] = {}
        self._driver = driver
        self._redis: redis.asyncio.Redis = driver.redis
        self._pipeline = AsyncPipeline(driver.redis)
        self._due: dict[str, None] = {}
        self._wanted = asyncio.Event()

    def attach(self, record: Record) -> Feed:
        """The request's feed, one reader more. Give it back with `detach`."""
        feed = self.feeds.get(record.request_id)
        if feed is None:
            feed = self.feeds[record.request_id] = Feed(record)
            self._want((record.request_id,))
        feed.readers += 1
        return feed

    def detach(self, feed: Feed) -> None:
        """One reader less; a feed without any is dropped."""
        feed.readers -= 1
        if not feed.readers and self.feeds.get(feed.request_id) is feed:
            del self.feeds[feed.request_id]

    async def catch_up(self, feed: Feed) -> None:
        """Read one feed now: a client may have seen more elsewhere. Raises RedisUnusable."""
        try:
            await self._read([feed.request_id])
        except RedisError as error:
            raise explain(error, address(self._redis)) from error

    def start(self) -> list[asyncio.Task[None]]:
        """Read, in tasks that go on over any outage of Redis until they are cancelled."""
        return [asyncio.create_task(self._forever(work)) for work in (self._listen, self._read_wanted, self._sweep)]

    async def _forever(self, work: Callable[[], Any]) -> None:
        while True:
            try:
                await work()
            except (RedisError, OSError, TokenRelayError) as error:
                self.figures.redis_errors.add("follow")
                log.warning("Redis: %s; trying again", error)
                await asyncio.sleep(_AGAIN_S)

    def _want(self, request_ids: Iterable[str]) -> None:
        """Have those of the requests read that are followed here."""
        self._due.update((request_id, None) for request_id in request_ids if request_id in self.feeds)
        if self._due:
            self._wanted.set()

    async def _listen(self) -> None:
        async with self._redis.pubsub() as pubsub:
            await pubsub.subscribe(keys.WAKE, keys.ENDED)
            self._want(self.feeds)  # what was announced before we listened
            while True:
                # A timeout sends the connection's health check, which finds a peer that is gone.
                message = await pubsub.get_message(ignore_subscribe_messages=True, timeout=_LISTEN_S)
                if message is not None:
                    self._want(text(message["data"]).split())

    async def _read_wanted(self) -> None:
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            due, self._due = list(self._due), {}
            for start in range(0, len(due), _A_READ):
                part = due[start : start + _A_READ]
                try:
                    await self._read(part)
                except (RedisError, OSError):
                    self._want(due[start:])
                    raise

    async def _read(self, request_ids: Sequence[str]) -> None:
        feeds = [feed for feed in map(self.feeds.get, request_ids) if feed is not None]
        batch: Batch = []
        for feed in feeds:
            batch.append(("XRANGE", keys.stream(feed.request_id), feed.begin, "+", "COUNT", _COUNT))
        if not batch:
            return
        for feed, raw in zip(feeds, await self._pipeline.run(batch), strict=True):
            if isinstance(raw, ResponseError):
                feed.fail(ProtocolError(f"request {feed.request_id} can't be read: {raw}"))
            elif isinstance(raw, Exception):
                raise raw
            else:
                self._receive(feed, raw)

    def _receive(self, feed: Feed, raw: list[Any]) -> None:
        known, doubted = len(feed.entries), feed.doubted
        try:
            feed.receive(raw)
            self.figures.received(feed, known)
        except TokenRelayError as error:
            feed.fail(error)
        if len(raw) >= _COUNT or (feed.doubted and not doubted):
            self._want((feed.request_id,))
        elif feed.entries:
            feed.loaded.set()
        # Nothing at all: the sweep looks whether the keys are gone.

    async def _sweep(self) -> None:
        while True:
            open_feeds = [feed for feed in self.feeds.values() if not feed.over]
            for start in range(0, max(len(open_feeds), 1), _A_READ):  # also without feeds: the clock is kept right
                await self._look(open_feeds[start : start + _A_READ])
            await asyncio.sleep(SWEEP_S)

    async def _look(self, feeds: Sequence[Feed]) -> None:
        """Redis's time, and the hashes of followed requests: gone, or past the deadline with nobody to say so?"""
        batch: Batch = []
        for feed in feeds:
            request, stream = keys.of_request(feed.request_id)
            batch += [("HMGET", request, "state", "deadline_us", "fence", "next"), ("XLEN", stream)]
        self.figures.clock.asked()
        *looks, time = await self._pipeline.run([*batch, ("TIME",)])
        now_us = server_time_us(time)
        self.figures.clock.told(now_us)
        for feed, look, length in zip(feeds, looks[::2], looks[1::2], strict=True):
            if isinstance(look, Exception) or isinstance(length, Exception):
                continue  # a hash of another type: the read of the stream says so
            state, deadline_us, fence, next_index = look
            if state is None or not length:
                feed.fail(
                    StreamExpired(
                        f"the stream of request {feed.request_id} is gone: its retention is over, or it was deleted",
                        request_id=feed.request_id,
                    )
                )
            elif State(text(state)).terminal and feed.last_id is not None and int(next_index) <= feed.last_id.token:
                ended = f"request {feed.request_id} ended before {feed.last_id}, which was read: Redis lost writes"
                feed.fail(StreamChanged(ended, request_id=feed.request_id))
            elif not State(text(state)).terminal and now_us > int(deadline_us) + (_OWNER_GRACE_US if fence else 0):
                await self._driver.run(expire(feed.request_id))
        self._want(feed.request_id for feed in feeds)
