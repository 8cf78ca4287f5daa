"""The shared server as two, one for each plane: what `TEST_PLANES=2` runs the tests of the core against.

Tests look at Redis with one client. `SplitClient` is their eyes on both servers: each command goes to the server of its
keys, so that a key which the product wrote to the wrong server isn't found.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final

import redis

from tests.redis_servers import RedisServer
from tokenrelay.shared.redis.batches import Pipeline
from tokenrelay.shared.redis.connections import connect
from tokenrelay.shared.wire.keys import Plane, plane_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TWO_PLANES: Final = os.environ.get("TEST_PLANES") == "2"
STREAMS_URL: Final = "TOKENRELAY_STREAMS_URL"
_OF_BOTH: Final = ("FLUSHALL", "FLUSHDB", "SCRIPT", "CONFIG", "CLIENT")
_OF_MANY_KEYS: Final = ("DEL", "EXISTS", "UNLINK")


class SplitServer(RedisServer):
    """The queue plane's server, and beside it the token plane's. `kill` and `start` are of the first alone."""

    def __init__(self, folder: Path, streams_folder: Path) -> None:
        super().__init__(folder)
        self.streams = RedisServer(streams_folder)

    def client(self) -> redis.Redis:
        return SplitClient(self.url, self.streams.url)

    def stop(self) -> None:
        super().stop()
        self.streams.stop()


class SplitClient(redis.Redis):
    """Sends each command to the server of its keys."""

    def __init__(self, queue_url: str, token_url: str, retries: int = 3) -> None:
        self.queue, self.token = connect(queue_url, retries=retries), connect(token_url, retries=retries)
        super().__init__(connection_pool=self.queue.connection_pool)

    def execute_command(self, *arguments: Any, **options: Any) -> Any:
        name, *rest = arguments
        if str(name).split()[0] in _OF_BOTH:
            self.token.execute_command(*arguments, **options)  # type: ignore[no-untyped-call]
        if name == "KEYS":
            return [*self.queue.keys(*rest), *self.token.keys(*rest)]
        if name in _OF_MANY_KEYS and len(rest) > 1:
            return sum(self.execute_command(name, key) for key in rest)
        return self._client(name, rest).execute_command(*arguments, **options)  # type: ignore[no-untyped-call]

    def scan_iter(self, *arguments: Any, **options: Any) -> Iterator[Any]:
        yield from self.queue.scan_iter(*arguments, **options)
        yield from self.token.scan_iter(*arguments, **options)

    def publish(self, channel: Any, message: Any, **options: Any) -> Any:
        return self._client("PUBLISH", [channel]).publish(channel, message, **options)

    def info(self, section: str | None = None, *arguments: Any, **options: Any) -> Any:
        """The queue plane's, with the clients that are blocked on either."""
        found = dict(self.queue.info(section) if section else self.queue.info())
        if "blocked_clients" in found:
            found["blocked_clients"] += self.token.info("clients")["blocked_clients"]
        return found

    def pipeline(self, transaction: bool = True, shard_hint: Any = None) -> Any:
        """RQ's, which are of its own keys."""
        return self.queue.pipeline(transaction, shard_hint)

    def close(self) -> None:
        self.queue.close()
        self.token.close()

    def _client(self, name: str, arguments: list[Any]) -> redis.Redis:
        key = arguments[0] if arguments else ""
        if name in ("EVALSHA", "EVAL"):
            key = arguments[2]
        elif name == "XREAD":
            key = arguments[arguments.index(b"STREAMS") + 1]
        key = key if isinstance(key, str | bytes) else str(key)
        return self.token if plane_of(key) is Plane.TOKEN else self.queue


def pipeline_on(client: redis.Redis) -> Pipeline:
    """The product's pipeline over the servers that the test's client looks at."""
    return Pipeline(client.queue, client.token) if isinstance(client, SplitClient) else Pipeline(client)


def client_on(queue_url: str, token_url: str, *, retries: int = 3) -> redis.Redis:
    """A test's client of both planes."""
    if queue_url == token_url:
        return connect(queue_url, retries=retries)
    return SplitClient(queue_url, token_url, retries)


def streams_of(client: redis.Redis) -> redis.Redis:
    """The token plane's client alone."""
    return client.token if isinstance(client, SplitClient) else client
