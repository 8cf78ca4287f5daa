"""The clients of both planes: one and the same where both planes are on one server."""

from __future__ import annotations

from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, Final, Generic, NamedTuple, TypeVar

import redis
import redis.asyncio

from tokenrelay.shared.errors import RedisUnusable, SettingsError
from tokenrelay.shared.redis import connections
from tokenrelay.shared.redis.commands import channels_plane
from tokenrelay.shared.wire.keys import Plane

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping

    from redis.asyncio.client import PubSub
    from redis.exceptions import RedisError

Client = TypeVar("Client", bound=redis.Redis | redis.asyncio.Redis)
_QUEUE_SETTING: Final = "TOKENRELAY_REDIS_URL"
_TOKEN_SETTING: Final = "TOKENRELAY_STREAMS_URL"


class Urls(NamedTuple):
    """Where the planes' servers are. Passwords included: never to be shown."""

    queue: str
    token: str


class Servers(NamedTuple, Generic[Client]):
    """The client of each plane's server."""

    queue: Client
    token: Client

    @property
    def planes(self) -> tuple[Plane, ...]:
        """One plane of each server: both where there are two."""
        return (Plane.QUEUE,) if self.queue is self.token else (Plane.QUEUE, Plane.TOKEN)

    @property
    def clients(self) -> tuple[Client, ...]:
        """The clients, each once."""
        return (self.queue,) if self.queue is self.token else (self.queue, self.token)

    @property
    def address(self) -> str:
        """Where the servers are, for messages."""
        return " and ".join(connections.address(client) for client in self.clients)

    def client(self, plane: Plane) -> Client:
        """The plane's."""
        return self.token if plane is Plane.TOKEN else self.queue

    def explain(self, error: RedisError, plane: Plane) -> RedisUnusable:
        """An error of the plane's server, in one line that says what to do."""
        apart = self.token is not self.queue and plane is Plane.TOKEN
        where = connections.address(self.client(plane))
        return connections.explain(error, where, _TOKEN_SETTING if apart else _QUEUE_SETTING)


def servers(queue: Client, token: Client | None = None) -> Servers[Client]:
    """The clients of both planes; `token` None is the same server as the queue plane's."""
    return Servers(queue, queue if token is None else token)


def servers_of(connection: Client | None, streams_connection: Client | None) -> Servers[Client] | None:
    """The servers of the connections that a caller gave, None without any. Raises SettingsError."""
    if connection is not None:
        return servers(connection, streams_connection)
    if streams_connection is not None:
        raise SettingsError("streams_connection: give connection, too")
    return None


def connect(urls: Urls, *, retries: int = 3, timeout_s: float = connections.TIMEOUT_S) -> Servers[redis.Redis]:
    """Clients of both servers, one for both planes where the URLs are the same. Raises SettingsError for a bad URL."""
    return _connected(lambda url: connections.connect(url, retries=retries, timeout_s=timeout_s), urls)


def connect_async(urls: Urls, *, retries: int = 3) -> Servers[redis.asyncio.Redis]:
    """As `connect`, for asyncio."""
    return _connected(lambda url: connections.connect_async(url, retries=retries), urls)


def close(servers: Servers[redis.Redis]) -> None:
    """Close every client, also after an error, which is raised then."""
    with ExitStack() as closing:
        for client in servers.clients:
            closing.callback(client.close)


async def aclose(servers: Servers[redis.asyncio.Redis]) -> None:
    """As `close`, for asyncio."""
    async with AsyncExitStack() as closing:
        for client in servers.clients:
            closing.push_async_callback(client.aclose)


@contextmanager
def connected(
    urls: Urls, *, retries: int = 3, timeout_s: float = connections.TIMEOUT_S
) -> Iterator[Servers[redis.Redis]]:
    """`connect`, for the time of a `with` block."""
    found = connect(urls, retries=retries, timeout_s=timeout_s)
    try:
        yield found
    finally:
        close(found)


@asynccontextmanager
async def subscription(servers: Servers[redis.asyncio.Redis], *channels: str) -> AsyncIterator[PubSub]:
    """Listens to the channels, on the server of their plane. Raises MixedPlanesError where they aren't of one."""
    async with servers.client(channels_plane(channels)).pubsub() as pubsub:
        await pubsub.subscribe(*channels)
        yield pubsub


def check_fit(plane: Plane, info: Mapping[str, Any]) -> None:
    """Check a reply to the plane's INFO. Raises RedisUnusable, naming the token plane's setting."""
    try:
        connections.check_fit(info)
    except RedisUnusable as error:
        if plane is Plane.QUEUE:
            raise
        raise RedisUnusable(f"{_TOKEN_SETTING}: {error.message}") from None


def _connected(connect: Callable[[str], Client], urls: Urls) -> Servers[Client]:
    queue = connect(urls.queue)
    if urls.token == urls.queue:
        return Servers(queue, queue)
    try:
        return Servers(queue, connect(urls.token))
    except SettingsError as error:
        raise SettingsError(error.message.replace(_QUEUE_SETTING, _TOKEN_SETTING)) from None
