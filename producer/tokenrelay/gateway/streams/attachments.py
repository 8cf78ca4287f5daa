"""One client that reads one request: attached while it's here, and what becomes of the request when the last has left.

A request that isn't durable, which nobody can be expected to come back for, is cancelled once no gateway has had a
reader of it for `disconnect_grace_s`. Which gateways have readers stands in Redis, so that a client may come back at
any of them. What isn't known (Redis away) is asked again, and never taken for nobody. Only a client's leaving counts:
a gateway that is stopped or dies cancels nothing, and its requests go on to their end or their deadline.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, TypeVar
from weakref import WeakSet

from tokenrelay.gateway.http.tasks import stop
from tokenrelay.gateway.streams.presence import RENEW_S, Presence
from tokenrelay.producer._core.endings import cancel
from tokenrelay.shared.errors import RedisUnusable, TokenRelayError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tokenrelay.gateway.records.record import Record
    from tokenrelay.gateway.streams.feed import Feed
    from tokenrelay.gateway.streams.hub import Hub
    from tokenrelay.producer._core.rounds import AsyncDriver, Steps

log = logging.getLogger(__name__)
Result = TypeVar("Result")

CANCELLED_BY: Final = "disconnect"
_MARK_SHARE: Final = 4
_SHORTEST_S: Final = 0.05
_LONGEST_S: Final = 5.0
_BACK_OFF_S: Final = 0.5
_MOST_BACK_OFF_S: Final = 30.0
_SETTLED_S: Final = 2 * RENEW_S
"""After an outage every gateway has said by then again what it has readers of."""


class Attachments:
    """All clients of this process. `run` keeps what Redis knows of them current, until it's cancelled."""

    def __init__(self, hub: Hub, driver: AsyncDriver, grace_s: float, settled_s: float = _SETTLED_S) -> None:
        self.hub = hub
        self._settled_s = settled_s
        self._driver = driver
        self._grace_s = grace_s
        self._presence = Presence()
        self._followers: dict[str, int] = {}
        self._marked_at: dict[str, float] = {}
        """Requests with followers here whose leaving would cancel them → when Redis was told last."""
        self._leaving: dict[str, asyncio.Task[None]] = {}
        self._sending: WeakSet[asyncio.Task[Any]] = WeakSet()
        """Each sends one client its events, or waits for the first of them."""
        self._stopping = False

    @property
    def leaving(self) -> int:
        """Requests whose last reader has left, and which aren't cancelled yet."""
        return len(self._leaving)

    def cut_off(self) -> None:
        """End all event streams where they are, for their clients to go on elsewhere; and those that come yet."""
        self._stopping = True
        for sending in self._sending:
            sending.cancel()

    def send_by(self, task: asyncio.Task[Any]) -> None:
        """Have the task cancelled where the gateway stops."""
        if self._stopping:
            task.cancel()
        else:
            self._sending.add(task)

    def sent_by(self, task: asyncio.Task[Any]) -> None:
        """Leave the task alone from here on."""
        self._sending.discard(task)

    def attach(self, record: Record) -> Attachment:
        """A hold on the request's feed, until its `leave`. It counts as a reader's from its `follow` on."""
        return Attachment(self, self.hub.attach(record))

    def followed(self, feed: Feed) -> None:
        """Count a reader more."""
        self._followers[feed.request_id] = self._followers.get(feed.request_id, 0) + 1
        if feed.record.mark.fleeting:
            self._marked_at.setdefault(feed.request_id, float("-inf"))

    def left(self, feed: Feed, *, followed: bool, departed: bool) -> None:
        """Count a reader less; the last one's departure begins the grace, and its end without one calls it off."""
        request_id = feed.request_id
        self.hub.detach(feed)
        if followed:
            self._followers[request_id] -= 1
        if self._followers.get(request_id) or not (followed or departed):
            return
        self._followers.pop(request_id, None)
        self._marked_at.pop(request_id, None)
        self._call_off(request_id)
        if departed and feed.record.mark.fleeting and not feed.over:
            self.abandon(request_id)

    def abandon(self, request_id: str) -> None:
        """Begin the grace of a fleeting request that nobody reads here."""
        task = asyncio.get_running_loop().create_task(self._outwait(request_id))
        self._leaving[request_id] = task
        task.add_done_callback(lambda done: self._forget(request_id, done))

    def _call_off(self, request_id: str) -> None:
        if leaving := self._leaving.pop(request_id, None):
            leaving.cancel()

    def _forget(self, request_id: str, task: asyncio.Task[None]) -> None:
        if self._leaving.get(request_id) is task:
            del self._leaving[request_id]
        if not task.cancelled() and (error := task.exception()):
            log.error("request %s, which its readers left, may run on", request_id, exc_info=error)

    async def run(self) -> None:
        """Say in Redis, soon enough, which fleeting requests have readers here."""
        while True:
            await asyncio.sleep(min(max(self._grace_s / _MARK_SHARE, _SHORTEST_S), _LONGEST_S))
            now = time.monotonic()
            due = [request_id for request_id, at in self._marked_at.items() if now - at >= RENEW_S]
            for request_id in (await self._quietly(self._presence.mark(due)) or ()) if due else ():
                if request_id in self._marked_at:
                    self._marked_at[request_id] = now

    async def close(self) -> None:
        """Forget the graces: another gateway's readers may be on their way."""
        await stop(list(self._leaving.values()))

    async def _outwait(self, request_id: str) -> None:
        """Cancel the request once nobody has read it for the grace."""
        await asyncio.sleep(self._grace_s)
        while await self._is_read(request_id):
            if self._followers.get(request_id):
                return
            await asyncio.sleep(max(self._grace_s, _SHORTEST_S))
        await self._cancel(request_id)

    async def _cancel(self, request_id: str) -> None:
        while True:
            cancelled = await self._quietly(cancel(request_id, CANCELLED_BY))
            if cancelled is not None:
                break
            await asyncio.sleep(_BACK_OFF_S)
        if cancelled:
            self.hub.figures.disconnect_cancels.add()
            log.info("request %s cancelled: its readers left", request_id, extra={"request_id": request_id})

    async def _is_read(self, request_id: str) -> bool:
        """Whether any gateway has readers of it. Where that can't be told now it's asked again until it can, and once
        more after a while: the other gateways couldn't say so either."""
        back_off_s, doubted = _BACK_OFF_S, False
        while not self._followers.get(request_id):
            elsewhere = await self._quietly(self._presence.elsewhere(request_id))
            if elsewhere is not None and (elsewhere or not doubted):
                return elsewhere
            doubted = elsewhere is None
            await asyncio.sleep(back_off_s if doubted else self._settled_s)
            back_off_s = min(back_off_s * 2, _MOST_BACK_OFF_S)
        return True

    async def _quietly(self, steps: Steps[Result]) -> Result | None:
        try:
            return await self._driver.run(steps)
        except TokenRelayError as error:
            if isinstance(error, RedisUnusable):
                self.hub.figures.redis_errors.add("readers")
            log.warning("readers of a request: %s", error)
            return None


class Attachment:
    """One client's hold on a feed."""

    def __init__(self, attachments: Attachments, feed: Feed) -> None:
        self.feed = feed
        self._attachments: Attachments | None = attachments
        self._followed = False

    def follow(self) -> None:
        """Count as a reader, whose departure may cancel the request."""
        if self._attachments is not None and not self._followed:
            self._followed = True
            self._attachments.followed(self.feed)

    @contextmanager
    def ending_with_the_gateway(self, task: asyncio.Task[Any]) -> Iterator[None]:
        """Have the task, which sends the client its events, cancelled where the gateway stops within the block."""
        attachments = self._attachments
        if attachments is not None:
            attachments.send_by(task)
        try:
            yield
        finally:
            if attachments is not None:
                attachments.sent_by(task)

    def leave(self, *, departed: bool = False) -> None:
        """Give it back; only the first call counts. `departed`: the client left before it had everything."""
        if self._attachments is not None:
            self._attachments.left(self.feed, followed=self._followed, departed=departed)
            self._attachments = None
