"""The hub: one reader of Redis for all followed requests of a process, however many clients read them.

A worker announces every step on the wake channel; the streams that somebody here follows are then read in one pipeline.
Pub/sub loses messages, so all of them are read now and then without being told: the sweep, which is also what notices
keys that are gone and deadlines that have passed.
"""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from redis.exceptions import RedisError, ResponseError

from tokenrelay.gateway.streams.feed import Feed
from tokenrelay.producer._core.endings import expire, server_time_us
from tokenrelay.shared.errors import ProtocolError, RedisUnusable, StreamChanged, StreamExpired, TokenRelayError
from tokenrelay.shared.redis.batches import AsyncPipeline
from tokenrelay.shared.redis.connections import address, explain, is_for_now
from tokenrelay.shared.store.record import Field, RequestRecord, look
from tokenrelay.shared.wire import keys
from tokenrelay.shared.wire.entries import text

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

    import redis.asyncio

    from tokenrelay.gateway.http.tasks import Background
    from tokenrelay.gateway.records.record import Record
    from tokenrelay.gateway.streams.figures import Figures
    from tokenrelay.producer._core.rounds import AsyncDriver
    from tokenrelay.shared.redis.batches import Batch

log = logging.getLogger(__name__)

SWEEP_S: Final = 1.0
"""How late a reader hears of what nobody announced."""
_A_READ: Final = 64
"""Streams in one pipeline: readers of others don't wait for a longer one to be parsed."""
_FIELDS: Final = (Field.STATE, Field.DEADLINE_US, Field.FENCE, Field.NEXT)
_COUNT: Final = 512
_AGAIN_S: Final = 0.2
_LISTEN_S: Final = 10.0
_OWNER_GRACE_US: Final = 1_000_000
"""How long past the deadline the worker that owns a request may take to end it itself."""


class Hub:
    """Owns the feeds. The work of `start` reads for them."""

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

    def start(self, background: Background) -> None:
        """Read, over any outage of Redis."""
        for work in (self._listen, self._read_wanted, self._sweep):
            background.keep(f"hub.{work.__name__.lstrip('_')}", partial(self._over_outages, work))

    async def _over_outages(self, work: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await work()
            except (RedisError, OSError, RedisUnusable) as error:
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
            if isinstance(raw, ResponseError) and not is_for_now(raw):
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
        except Exception as error:  # noqa: BLE001  it's logged, and concerns this request alone
            _fail_unreadable(feed, error)
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
            batch += [look(feed.request_id, _FIELDS), ("XLEN", keys.stream(feed.request_id))]
        self.figures.clock.asked()
        *looks, time = await self._pipeline.run([*batch, ("TIME",)])
        if isinstance(time, Exception):
            raise time
        now_us = server_time_us(time)
        self.figures.clock.told(now_us)
        for feed, held, length in zip(feeds, looks[::2], looks[1::2], strict=True):
            if isinstance(held, Exception) or isinstance(length, Exception):
                continue  # a hash of another type: the read of the stream says so
            try:
                overdue = _judge(feed, RequestRecord(_FIELDS, held), length, now_us)
            except Exception as error:  # noqa: BLE001  as above
                _fail_unreadable(feed, error)
                continue
            if overdue:
                await self._expire(feed)
        self._want(feed.request_id for feed in feeds)

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


def _judge(feed: Feed, record: RequestRecord, length: int, now_us: int) -> bool:
    """Whether the request is overdue, and nobody has said so. Fails a feed whose stream is gone, or was lost."""
    if not record.exists or not length:
        told = f"the stream of request {feed.request_id} is gone: its retention is over, or it was deleted"
        feed.fail(StreamExpired(told, request_id=feed.request_id))
        return False
    # All of them, whatever is needed: a hash that can't be read is told at once, and not where a later look needs it.
    state, deadline_us, tokens = record.state, record.deadline_us, record.tokens
    if not state.terminal:
        return now_us > deadline_us + (_OWNER_GRACE_US if record.owned else 0)
    if feed.last_id is not None and tokens < feed.last_id.token:
        told = f"request {feed.request_id} ended before {feed.last_id}, which was read: Redis lost writes"
        feed.fail(StreamChanged(told, request_id=feed.request_id))
    return False


def _fail_unreadable(feed: Feed, error: Exception) -> None:
    """What Redis holds of this request can't be read, by a mistake of ours or a newer version's words: its readers are
    told, and all others' requests go on."""
    log.exception("request %s can't be read", feed.request_id, exc_info=error, extra={"request_id": feed.request_id})
    told = f"request {feed.request_id} can't be read: {error}"
    feed.fail(ProtocolError(told, request_id=feed.request_id))
