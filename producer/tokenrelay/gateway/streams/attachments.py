"""Counts the readers of each request, and cancels non-durable requests whose readers have all disconnected.

A non-durable request is cancelled once no gateway has had a reader for `disconnect_grace_s`. Gateways record their
readers in Redis, so a client may reconnect to any of them. While Redis is unavailable nothing is cancelled: the check
is retried. Only a client's disconnect counts: a gateway that stops or dies cancels nothing.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, TypeVar
from weakref import WeakSet

from tokenrelay.gateway.http.tasks import cancel_all
from tokenrelay.producer._core.endings import cancel
from tokenrelay.producer._core.steps import RoundTrip, ask, raise_on_error
from tokenrelay.shared.errors import RedisUnusable, TokenRelayError
from tokenrelay.shared.redis.commands import server_time, server_time_us
from tokenrelay.shared.store import requests
from tokenrelay.shared.wire.keys import Plane

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tokenrelay.gateway.records.record import Record
    from tokenrelay.gateway.streams.feed import Feed
    from tokenrelay.gateway.streams.hub import Hub
    from tokenrelay.producer._core.drivers import AsyncDriver
    from tokenrelay.producer._core.steps import Steps
    from tokenrelay.shared.redis.commands import Batch

log = logging.getLogger(__name__)
Result = TypeVar("Result")

CANCELLED_BY: Final = "disconnect"
RENEW_S: Final = 5.0
_LIFETIME_S: Final = 15.0
"""Lifetime of an announcement. A crashed gateway delays the cancellation of its requests by this long."""
_ANNOUNCEMENTS_PER_GRACE: Final = 4
_SHORTEST_S: Final = 0.05
_LONGEST_S: Final = 5.0
_BACK_OFF_S: Final = 0.5
_MOST_BACK_OFF_S: Final = 30.0
_SETTLED_S: Final = 2 * RENEW_S
"""After an outage, every gateway has announced its readers again by then."""


class Attachments:
    """The readers of this process. `run` announces them in Redis until it's cancelled."""

    def __init__(self, hub: Hub, driver: AsyncDriver, grace_s: float, settled_s: float = _SETTLED_S) -> None:
        self.hub = hub
        self._settled_s = settled_s
        self._driver = driver
        self._grace_s = grace_s
        self._name = secrets.token_urlsafe(9)
        self._followers: dict[str, int] = {}
        self._announced_at: dict[str, float] = {}
        """Non-durable requests with readers here → when they were last announced in Redis."""
        self._graces: dict[str, asyncio.Task[None]] = {}
        self._sending: WeakSet[asyncio.Task[Any]] = WeakSet()
        """Tasks that each send events to one client, or wait for the first event."""
        self._stopping = False

    @property
    def abandoned(self) -> int:
        """Number of requests in their grace period."""
        return len(self._graces)

    def end_streams(self) -> None:
        """End all event streams, and refuse new ones, so that clients resume at another gateway."""
        self._stopping = True
        for sending in self._sending:
            sending.cancel()

    @contextmanager
    def cancelled_at_shutdown(self, task: asyncio.Task[Any]) -> Iterator[None]:
        """Context manager: cancel the sending task if the gateway stops inside the block."""
        if self._stopping:
            task.cancel()
        self._sending.add(task)
        try:
            yield
        finally:
            self._sending.discard(task)

    def attach(self, record: Record) -> Attachment:
        """Hold the request's feed until `leave`. Counts as a reader once `follow` is called."""
        return Attachment(self, self.hub.attach(record))

    def add_reader(self, feed: Feed) -> None:
        """Count a new reader."""
        self._followers[feed.request_id] = self._followers.get(feed.request_id, 0) + 1
        if feed.record.annotation.fleeting:
            self._announced_at.setdefault(feed.request_id, float("-inf"))

    def remove_reader(self, feed: Feed, *, counted: bool, disconnected: bool) -> None:
        """Remove a reader, `counted` if it was added. If the last one disconnected, start the grace period; if it had
        everything, end it."""
        request_id = feed.request_id
        self.hub.detach(feed)
        if counted:
            self._followers[request_id] -= 1
        if self._followers.get(request_id) or not (counted or disconnected):
            return
        self._followers.pop(request_id, None)
        self._announced_at.pop(request_id, None)
        self._end_grace(request_id)
        if disconnected and feed.record.annotation.fleeting and not feed.over:
            self.start_grace(request_id)

    def start_grace(self, request_id: str) -> None:
        """Start the grace period of a non-durable request without readers here."""
        task = asyncio.get_running_loop().create_task(self._cancel_after_grace(request_id))
        self._graces[request_id] = task
        task.add_done_callback(lambda done: self._forget(request_id, done))

    def _end_grace(self, request_id: str) -> None:
        if abandoned := self._graces.pop(request_id, None):
            abandoned.cancel()

    def _forget(self, request_id: str, task: asyncio.Task[None]) -> None:
        if self._graces.get(request_id) is task:
            del self._graces[request_id]
        if not task.cancelled() and (error := task.exception()):
            log.error("request %s has no readers but couldn't be cancelled", request_id, exc_info=error)

    async def run(self) -> None:
        """Announce in Redis which non-durable requests have readers here."""
        while True:
            await asyncio.sleep(min(max(self._grace_s / _ANNOUNCEMENTS_PER_GRACE, _SHORTEST_S), _LONGEST_S))
            now = time.monotonic()
            due = [request_id for request_id, at in self._announced_at.items() if now - at >= RENEW_S]
            for request_id in (await self._run_or_log(self._announce(due)) or ()) if due else ():
                if request_id in self._announced_at:
                    self._announced_at[request_id] = now

    async def close(self) -> None:
        """End all grace periods: clients may reconnect to another gateway."""
        await cancel_all(list(self._graces.values()))

    async def _cancel_after_grace(self, request_id: str) -> None:
        """Cancel the request once it has had no readers for the grace period."""
        await asyncio.sleep(self._grace_s)
        while await self._has_readers(request_id):
            if self._followers.get(request_id):
                return
            await asyncio.sleep(max(self._grace_s, _SHORTEST_S))
        await self._cancel(request_id)

    async def _cancel(self, request_id: str) -> None:
        while True:
            cancelled = await self._run_or_log(cancel(request_id, CANCELLED_BY))
            if cancelled is not None:
                break
            await asyncio.sleep(_BACK_OFF_S)
        if cancelled:
            self.hub.counters.disconnect_cancels.add()
            log.info("request %s cancelled: all readers disconnected", request_id, extra={"request_id": request_id})

    async def _has_readers(self, request_id: str) -> bool:
        """Whether any gateway has readers of the request. Retries during a Redis outage, and checks again after the
        outage, since other gateways couldn't announce readers either."""
        back_off_s, after_outage = _BACK_OFF_S, False
        while not self._followers.get(request_id):
            elsewhere = await self._run_or_log(self._look_elsewhere(request_id))
            if elsewhere is not None and (elsewhere or not after_outage):
                return elsewhere
            after_outage = elsewhere is None
            await asyncio.sleep(back_off_s if after_outage else self._settled_s)
            back_off_s = min(back_off_s * 2, _MOST_BACK_OFF_S)
        return True

    def _announce(self, request_ids: Sequence[str]) -> Steps[list[str]]:
        """Announce readers of these requests. Returns the requests that were announced; raises if none was."""
        (time,) = yield from ask([server_time(Plane.TOKEN)])
        good_until_us = server_time_us(time) + int(_LIFETIME_S * 1e6)
        batch: Batch = []
        for request_id in request_ids:
            batch += requests.announce_readers(request_id, self._name, good_until_us, int(_LIFETIME_S * 1000))
        replies = yield RoundTrip(batch)
        announced = [
            request_id
            for request_id, pair in zip(request_ids, zip(replies[::2], replies[1::2], strict=True), strict=True)
            if not any(isinstance(reply, Exception) for reply in pair)
        ]
        if not announced:
            raise_on_error(replies)
        return announced

    def _look_elsewhere(self, request_id: str) -> Steps[bool]:
        """Withdraw this gateway's announcement, and return whether another gateway has readers of the request."""
        withdrawn, held = requests.withdraw_readers(request_id, self._name), requests.readers_look(request_id)
        _, announced, time = yield from ask([withdrawn, held, server_time(Plane.TOKEN)])
        return requests.has_readers(announced, server_time_us(time))

    async def _run_or_log(self, steps: Steps[Result]) -> Result | None:
        try:
            return await self._driver.run(steps)
        except TokenRelayError as error:
            if isinstance(error, RedisUnusable):
                self.hub.counters.redis_errors.add("readers")
            log.warning("can't update a request's readers in Redis: %s", error)
            return None


class Attachment:
    """One client's hold on a feed."""

    def __init__(self, attachments: Attachments, feed: Feed) -> None:
        self.feed = feed
        self.attachments = attachments
        self._is_reader = self._has_left = False

    def follow(self) -> None:
        """Count as a reader: its disconnect may cancel the request."""
        if not self._has_left and not self._is_reader:
            self._is_reader = True
            self.attachments.add_reader(self.feed)

    def leave(self, *, disconnected: bool = False) -> None:
        """Release the feed; later calls are no-ops. `disconnected`: the client left before it had everything."""
        if not self._has_left:
            self._has_left = True
            self.attachments.remove_reader(self.feed, counted=self._is_reader, disconnected=disconnected)
