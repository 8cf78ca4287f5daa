"""The read-only client: follow any request, from any process, at any time, from any token."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tokenrelay.producer._core import endings
from tokenrelay.producer._core.drivers import Driver
from tokenrelay.producer.generation import ReadOnlyGeneration
from tokenrelay.shared.errors import SettingsError
from tokenrelay.shared.redis.servers import Servers, Urls, close, connect, servers_of
from tokenrelay.shared.settings import ProducerSettings

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    import redis


def settings_of(
    url: str | None, streams_url: str | None, given: Servers[Any] | None, settings: ProducerSettings | None
) -> ProducerSettings:
    """The settings for a client's arguments. Raises SettingsError."""
    if given is not None and (url is not None or streams_url is not None):
        raise SettingsError("url, connection: both given; give one of them, or neither for TOKENRELAY_REDIS_URL")
    return settings or ProducerSettings.of_library(redis_url=url, streams_url=streams_url)


def urls_of(url: str | None, streams_url: str | None, settings: ProducerSettings) -> Urls:
    """The URLs of the planes: from a client's arguments, else from its settings."""
    queue = url or settings.urls.queue
    return Urls(queue, streams_url or (queue if settings.streams_url is None else settings.urls.token))


class Consumer:
    """Reads requests; never writes to Redis.

    Connects to `url`, TOKENRELAY_REDIS_URL where none is given, or uses `connection` (which it then doesn't close).
    `streams_url` is the Redis of the streams, TOKENRELAY_STREAMS_URL where none is given; without either, the same one.
    A `connection` is for queues and streams alike, whatever TOKENRELAY_STREAMS_URL says; with `streams_connection` that
    one is for the streams.
    Threads may share it: every read takes a connection of its own from the pool while it lasts. After `os.fork` the
    child may go on using it, handles included: it gets connections of its own.

        >>> from tokenrelay.producer import Consumer
        >>> with Consumer() as consumer:
        ...     generation = consumer.get(request_id)
        ...     for token in generation.tokens(after=3):
        ...         print(token.index, repr(token.text))
        ...     print([event.kind for event in generation.events()])
        4 ' and'
        5 ' warm'
        6 '.'
        ['queued', 'started', 'completed']
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        streams_url: str | None = None,
        connection: redis.Redis | None = None,
        streams_connection: redis.Redis | None = None,
        settings: ProducerSettings | None = None,
    ) -> None:
        given = servers_of(connection, streams_connection)
        self._settings = settings_of(url, streams_url, given, settings)
        self._owns_connection = given is None
        found = given or connect(urls_of(url, streams_url, self._settings))
        self._driver = Driver(*found)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections, unless they're the caller's. Handles can't be used afterwards."""
        if self._owns_connection:
            close(self._driver.servers)

    def get(self, request_id: str) -> ReadOnlyGeneration:
        """The request's handle. Raises RequestNotFound, RequestError for a malformed ID, RedisUnusable."""
        self._driver.run(endings.status(endings.check_id(request_id)))
        return ReadOnlyGeneration(request_id, self._driver)
