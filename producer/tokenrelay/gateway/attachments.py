"""One client that reads one request: attached while it's here, and what becomes of the request when the last has left.

A plain completion, which nobody can be expected to come back for, is cancelled once no gateway has had a reader of it
for `disconnect_grace_s`. When one was last here stands in Redis, so that a client may come back at any gateway. A
gateway that dies leaves nobody to cancel: the request then goes on to its end or its deadline.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final, TypeVar

from tokenrelay.gateway.tasks import stop
from tokenrelay.producer.endings import cancel, server_time_us
from tokenrelay.producer.rounds import ask
from tokenrelay.shared import keys
from tokenrelay.shared.errors import RedisUnusable, TokenRelayError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tokenrelay.gateway.feed import Feed
    from tokenrelay.gateway.hub import Hub
    from tokenrelay.gateway.records import Record
    from tokenrelay.producer.rounds import AsyncDriver, Steps

log = logging.getLogger(__name__)
Result = TypeVar("Result")

CANCELLED_BY: Final = "disconnect"
_REFRESH_SHARE: Final = 4
_SHORTEST_S: Final = 0.05


class Attachments:
    """All clients of this process. `run` keeps what Redis knows of them current, until it's cancelled."""

    def __init__(self, hub: Hub, driver: AsyncDriver, grace_s: float) -> None:
        self.hub = hub
        self._driver = driver
        self._grace_s = grace_s
        self._leaving: dict[str, asyncio.Task[None]] = {}

    @property
    def leaving(self) -> int:
        """Requests whose last reader has left, and which aren't cancelled yet."""
        return len(self._leaving)

    def attach(self, record: Record) -> Attachment:
        """A reader more, until its `leave`."""
        if leaving := self._leaving.pop(record.request_id, None):
            leaving.cancel()
        return Attachment(self, self.hub.attach(record))

    def left(self, feed: Feed) -> None:
        """Begin the grace of a request whose last reader here has left."""
        self.hub.detach(feed)
        if feed.readers or feed.over or not feed.record.mark.fleeting:
            return
        task = asyncio.get_running_loop().create_task(self._outwait(feed.request_id))
        self._leaving[feed.request_id] = task
        task.add_done_callback(lambda done: self._forget(feed.request_id, done))

    def _forget(self, request_id: str, task: asyncio.Task[None]) -> None:
        if self._leaving.get(request_id) is task:
            del self._leaving[request_id]

    async def run(self) -> None:
        """Say in Redis, often enough, which fleeting requests have readers here."""
        while True:
            await asyncio.sleep(max(self._grace_s / _REFRESH_SHARE, _SHORTEST_S))
            read = [feed.request_id for feed in self.hub.feeds.values() if feed.record.mark.fleeting and not feed.over]
            if read:
                await self._quietly(self._seen(read))

    async def close(self) -> None:
        """Forget the graces: another gateway's readers may be on their way."""
        await stop(list(self._leaving.values()))

    async def _outwait(self, request_id: str) -> None:
        await self._quietly(self._seen([request_id]))
        left_s = self._grace_s
        while left_s > 0:
            await asyncio.sleep(left_s)
            left_s = await self._quietly(self._unseen_left_s(request_id)) or 0
        if await self._quietly(cancel(request_id, CANCELLED_BY)):
            self.hub.figures.disconnect_cancels.add()
            log.info("request %s cancelled: its readers left", request_id, extra={"request_id": request_id})

    async def _quietly(self, steps: Steps[Result]) -> Result | None:
        try:
            return await self._driver.run(steps)
        except TokenRelayError as error:
            if isinstance(error, RedisUnusable):
                self.hub.figures.redis_errors.add("readers")
            log.warning("readers of a request: %s", error)
            return None

    def _seen(self, request_ids: list[str]) -> Steps[None]:
        (time,) = yield from ask([("TIME",)])
        kept_ms = int((self._grace_s * 2 + 60) * 1000)
        at_us = server_time_us(time)
        yield from ask([("SET", keys.attached(request_id), at_us, "PX", kept_ms) for request_id in request_ids])

    def _unseen_left_s(self, request_id: str) -> Steps[float]:
        """How much of the grace is left since any gateway last had a reader."""
        seen_us, time = yield from ask([("GET", keys.attached(request_id)), ("TIME",)])
        if seen_us is None:
            return 0.0
        return self._grace_s - (server_time_us(time) - int(seen_us)) / 1e6


class Attachment:
    """One client's hold on a feed."""

    def __init__(self, attachments: Attachments, feed: Feed) -> None:
        self.feed = feed
        self._attachments: Attachments | None = attachments

    def leave(self) -> None:
        """Give it back; only the first call counts."""
        if self._attachments is not None:
            self._attachments.left(self.feed)
            self._attachments = None


@asynccontextmanager
async def attached(attachments: Attachments, record: Record) -> AsyncIterator[Feed]:
    """The request's feed, loaded, for as long as the block lasts."""
    attachment = attachments.attach(record)
    try:
        await attachment.feed.loaded.wait()
        yield attachment.feed
    finally:
        attachment.leave()
