"""The drivers of `steps`: on redis-py clients for threads, on redis.asyncio clients for one event loop. And the check,
before the first write, that Redis keeps what is written."""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final, cast

from redis.exceptions import RedisError, ResponseError

from tokenrelay.producer._core.shared_waits import SharedWaits
from tokenrelay.producer._core.steps import Pause, RoundTrip, SingleFlight, Wait, ask, is_wrong_type
from tokenrelay.shared.errors import ProtocolError, TokenRelayError, WrongEventLoop
from tokenrelay.shared.redis.batches import AsyncPipeline, Pipeline, cancel_requests, raise_if_cancelled
from tokenrelay.shared.redis.commands import batch_plane, info
from tokenrelay.shared.redis.servers import check_fit, connected
from tokenrelay.shared.wire.keys import Plane

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Iterator

    import redis
    import redis.asyncio

    from tokenrelay.producer._core.steps import Answered, Item, Result, Steps
    from tokenrelay.shared.redis.commands import Reply
    from tokenrelay.shared.redis.servers import Servers, Urls

CONNECTIONS: Final = 4
"""How many round trips of one asyncio client are under way at a time, on each server. To open a connection takes as
long as eight round trips on it."""


class Driver:
    """Runs steps on redis-py clients, of one server or of one for each plane. Safe to share between threads and usable
    after a fork, as the clients are: each round takes a connection from a pool, and the pool gives a forked child
    connections of its own."""

    def __init__(self, queue: redis.Redis, token: redis.Redis | None = None) -> None:
        self._pipeline = Pipeline(queue, token)

    @property
    def servers(self) -> Servers[redis.Redis]:
        return self._pipeline.servers

    def run(self, steps: Steps[Result]) -> Result:
        """What the steps end with. Raises RedisUnusable for what Redis refused, ProtocolError for a key that is of
        another type, and whatever the steps raise."""
        answered: Answered = None
        item: Item | None = None
        try:
            while True:
                item = _resume(steps, answered)
                answered = self._answer(item)
        except StopIteration as stop:
            return cast("Result", stop.value)
        except RedisError as error:
            raise _translated(error, self.servers, item) from error

    def _answer(self, item: Item) -> Answered:
        if isinstance(item, Pause):
            time.sleep(item.seconds)
            return None
        if isinstance(item, SingleFlight):
            return [self.run(item.steps)]
        try:
            if isinstance(item, Wait):
                return item.answer(self._pipeline.run(item.batch()))
            return self._pipeline.run(item.batch, atomic=item.atomic)
        except RedisError as error:
            return error


class AsyncDriver:
    """`Driver` on redis.asyncio clients: for the event loop that it was first used on.

    However many callers begin together, their round trips take turns on a few connections to each server; readers that
    wait have others. Connections, futures and tasks are that loop's: on another one, whoever waits for them would never
    wake.
    """

    def __init__(self, queue: redis.asyncio.Redis, token: redis.asyncio.Redis | None = None) -> None:
        pipeline = AsyncPipeline(queue, token)
        self.servers: Servers[redis.asyncio.Redis] = pipeline.servers
        self._pipeline = pipeline
        turns = {client: asyncio.Semaphore(CONNECTIONS) for client in self.servers.clients}
        self._turns = {plane: turns[self.servers.client(plane)] for plane in Plane}
        self._waits = SharedWaits(pipeline)
        self._flights: dict[Hashable, asyncio.Task[Any]] = {}
        self._loop: list[asyncio.AbstractEventLoop] = []
        self._first_use = threading.Lock()

    def check_loop(self) -> None:
        """Raises WrongEventLoop on any loop but the first that this was called on."""
        running = asyncio.get_running_loop()
        with self._first_use:
            self._loop = self._loop or [running]
        if self._loop[0] is not running:
            raise WrongEventLoop(
                "this client is used on a second event loop: make one for each loop, "
                "which is one for each thread that runs a loop, and for each asyncio.run"
            )

    async def run(self, steps: Steps[Result]) -> Result:
        """As Driver.run. Raises WrongEventLoop."""
        self.check_loop()
        cancels = cancel_requests()
        answered: Answered = None
        item: Item | None = None
        try:
            while True:
                item = _resume(steps, answered)
                answered = await self._answer(item)
                raise_if_cancelled(cancels)
        except StopIteration as stop:
            return cast("Result", stop.value)
        except RedisError as error:
            raise _translated(error, self.servers, item) from error

    async def _answer(self, item: Item) -> Answered:
        if isinstance(item, Pause):
            await asyncio.sleep(item.seconds)
            return None
        if isinstance(item, SingleFlight):
            return [await self._join(item)]
        try:
            if isinstance(item, Wait):
                return await self._waits.run(item)
            async with self._turns[batch_plane(item.batch)]:
                return await self._pipeline.run(item.batch, atomic=item.atomic)
        except RedisError as error:
            return error

    async def _join(self, item: SingleFlight) -> Reply:
        """The result of the flight under way with the item's key; of the item's own steps where there is none."""
        flight = self._flights.get(item.key)
        if flight is None or flight.done():
            flight = self._flights[item.key] = asyncio.create_task(self.run(item.steps))
            flight.add_done_callback(partial(self._forget, item.key))
        return await asyncio.shield(flight)  # a caller that is cancelled cancels nobody else's

    def _forget(self, key: Hashable, flight: asyncio.Task[Any]) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]
        if not flight.cancelled():
            flight.exception()  # raised where it is awaited; nobody may be there any more


@contextmanager
def connected_driver(urls: Urls) -> Iterator[Driver]:
    """A driver on connections of its own, for the time of a `with` block."""
    with connected(urls) as servers:
        yield Driver(*servers)


def check_redis(planes: Iterable[Plane]) -> Steps[None]:
    """Check that the planes' servers keep what they're given. Raises RedisUnusable. Skipped where INFO is refused."""
    for plane in planes:
        try:
            (found,) = yield from ask([info(plane)])
        except ResponseError:  # no right to it, or a double that has none
            continue
        check_fit(plane, found)


def check_servers(urls: Urls) -> None:
    """`check_redis` on connections of its own, so that a process fails at start and not at its first request."""
    with connected_driver(urls) as driver:
        driver.run(check_redis(driver.servers.planes))


def _translated(error: RedisError, servers: Servers[Any], item: Item | None) -> TokenRelayError:
    """RedisUnusable for a server that can't be used now, ProtocolError for a key that isn't of our type. `item`: what
    was asked last."""
    if is_wrong_type(error):
        return ProtocolError("a key of the request, or of its queue, is of another type: somebody else wrote it")
    plane = batch_plane(item.batch) if isinstance(item, RoundTrip) else Plane.TOKEN
    return servers.explain(error, plane)


def _resume(steps: Steps[Result], answered: Answered) -> Item:
    """The next thing to do. Raises StopIteration at the end, and whatever the steps raise."""
    if isinstance(answered, RedisError):
        return steps.throw(answered)
    return next(steps) if answered is None else steps.send(answered)
