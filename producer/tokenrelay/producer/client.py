"""The clients: a consumer follows any request, from any process and any token; a producer submits too."""

from __future__ import annotations

from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any

from tokenrelay.producer._core import endings
from tokenrelay.producer._core.drivers import Driver
from tokenrelay.producer._core.planning import plan_choices, plan_many, plan_request
from tokenrelay.producer._core.submission import Submitter
from tokenrelay.producer.generation import Generation, ReadOnlyGeneration
from tokenrelay.shared.errors import SettingsError
from tokenrelay.shared.redis.servers import Servers, Urls, close, connect, servers_of
from tokenrelay.shared.settings import ProducerSettings

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from types import TracebackType
    from typing import Self, Unpack

    import redis

    from tokenrelay.shared.options import Options, Submission


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


class Producer(Consumer):
    """Submits requests and follows them. Threads and forked children may share it, as a Consumer.

    Connects to `url`, TOKENRELAY_REDIS_URL where none is given, or uses `connection` (which it then doesn't close).

        >>> from tokenrelay.producer import Producer
        >>> with Producer() as producer:
        ...     generation = producer.submit("What is the weather today?", max_new_tokens=32, temperature=0.7, seed=7)
        ...     for token in generation:
        ...         print(token.text, end="")
        It is sunny and warm.
        >>> generation.text
        'It is sunny and warm.'
    """

    @cached_property
    def _submitter(self) -> Submitter:
        return Submitter(self._settings, self._driver.servers.planes)

    def get(self, request_id: str) -> Generation:
        """As Consumer.get; this handle can cancel."""
        self._driver.run(endings.status(endings.check_id(request_id)))
        return Generation(request_id, self._driver)

    def submit(self, prompt: str | None = None, **options: Unpack[Options]) -> Generation:
        """Queue one request. Once this returns, the request ends in an answer or an error, whatever process dies.

        Raises RequestError (field, limit; IdempotencyConflict), QueueFull, RedisUnusable. Nothing is queued then.
        """
        plan = plan_request({"prompt": prompt, **options}, self._settings)
        request_id = self._driver.run(self._submitter.submit(plan)).request_id
        return Generation(request_id, self._driver, plan.response_model)

    def submit_many(self, items: Iterable[str | Submission], **options: Unpack[Options]) -> list[Generation]:
        """Queue all of the items, or none. `options` are defaults for every item.

        Raises RequestError naming the item, field and limit; QueueFull where they don't fit all; RedisUnusable.
        """
        plans = plan_many(items, options, self._settings)
        if plans:
            self._driver.run(self._submitter.submit_many(plans))
        return [Generation(plan.request_id, self._driver, plan.response_model) for plan in plans]

    def submit_choices(self, prompt: str | None = None, *, n: int, **options: Unpack[Options]) -> list[Generation]:
        """Queue `n` requests for the same prompt, 1 to 16, or none of them: the choices, in order.

        Each is a request of its own: it streams, resumes, fails and is cancelled by itself. The first one's answer is
        what `submit` gives with the same seed; choice k is the same for every `n` above k. An engine that can prefills
        the prompt once for all of them. Their IDs: a base, then the base and `-1`, `-2`, … Raises as `submit`.
        """
        plans = plan_choices([{"prompt": prompt, **options}], n, self._settings)
        submitted = self._driver.run(self._submitter.submit_choices(plans))
        return [Generation(each.request_id, self._driver, each.plan.response_model) for each in submitted]

    @contextmanager
    def stream(self, prompt: str | None = None, **options: Unpack[Options]) -> Iterator[Generation]:
        """`submit` as a context manager: leaving the block cancels the request if it hasn't ended."""
        generation = self.submit(prompt, **options)
        try:
            yield generation
        finally:
            generation.cancel()
