"""Clients of the Redis that Sentinels call the primary, which they ask anew at every connection.

    redis+sentinel://user:password@host1:26379,host2:26379,host3:26379/SERVICE/0

User and password are Redis's. `sentinel_username` and `sentinel_password` in the query are the Sentinels' own, where
they ask for any. Other parameters are redis-py's, such as ssl_ca_certs with rediss+sentinel://, which takes TLS to all.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qsl, urlencode, urlsplit

from redis.asyncio.retry import Retry as AsyncRetry
from redis.asyncio.sentinel import Sentinel as AsyncSentinel
from redis.asyncio.sentinel import SentinelConnectionPool as AsyncSentinelConnectionPool
from redis.backoff import NoBackoff
from redis.connection import parse_url
from redis.retry import Retry
from redis.sentinel import Sentinel, SentinelConnectionPool

if TYPE_CHECKING:
    from collections.abc import Mapping

    import redis
    import redis.asyncio

SCHEMES: Final = ("redis+sentinel://", "rediss+sentinel://")
_END_OF_NETLOC: Final = re.compile("[/?#]")
_PORT: Final = 26379
_OWN: Final = "sentinel_"
_TIMEOUT_S: Final = 1.0
"""In which a Sentinel is to answer, else the next one is asked: its host may be the one that failed."""


@dataclass(frozen=True, slots=True)
class SentinelAddress:
    """A parsed URL. `redis` and `sentinels` are redis-py's options for the primary and for each of the Sentinels."""

    hosts: tuple[tuple[str, int], ...]
    service: str
    redis: dict[str, Any]
    sentinels: dict[str, Any]

    @classmethod
    def parse(cls, url: str) -> SentinelAddress:
        """Raises ValueError, without a word of what stands in the URL."""
        scheme, _, rest = url.partition("+sentinel://")
        # Not by urlsplit, which takes one host alone: newer Pythons refuse brackets in the middle of several.
        netloc = _END_OF_NETLOC.split(rest, maxsplit=1)[0]
        userinfo, at, hosts = netloc.rpartition("@")
        parts = urlsplit(rest.removeprefix(netloc))
        service, _, database = parts.path.strip("/").partition("/")
        if not service or not hosts:
            raise ValueError("a Sentinel URL names hosts and a service")
        parameters = parse_qsl(parts.query)
        own = {name.removeprefix(_OWN): value for name, value in parameters if name.startswith(_OWN)}
        others = urlencode([(name, value) for name, value in parameters if not name.startswith(_OWN)])
        # The rest is a Redis URL with another host, which redis-py reads better than we could.
        options = dict(parse_url(f"{scheme}://{userinfo}{at}localhost/{database}?{others}"))  # type: ignore[no-untyped-call]
        del options["host"]
        if options.pop("connection_class", None):
            options["ssl"] = True
        tls = {name: value for name, value in options.items() if name.startswith("ssl")}
        timeouts = {"socket_connect_timeout": _TIMEOUT_S, "socket_timeout": _TIMEOUT_S}
        return cls(tuple(map(_host, hosts.split(","))), service, options, {**timeouts, **tls, **own})


def _host(text: str) -> tuple[str, int]:
    parts = urlsplit(f"//{text}")
    if not parts.hostname:
        raise ValueError("a host of the Sentinel URL is empty")
    return parts.hostname, parts.port or _PORT


class _Pool(SentinelConnectionPool):
    """Closes the ways to the Sentinels with those to Redis.

    Another primary closes idle ones alone: other threads are asking the Sentinels at that moment.
    """

    def disconnect(self, inuse_connections: bool = True) -> None:
        super().disconnect(inuse_connections)
        for sentinel in self.sentinel_manager.sentinels:
            sentinel.connection_pool.disconnect(inuse_connections)


class _AsyncPool(AsyncSentinelConnectionPool):
    """`_Pool`, for asyncio."""

    async def disconnect(self, inuse_connections: bool = True) -> None:
        await super().disconnect(inuse_connections)
        for sentinel in self.sentinel_manager.sentinels:
            await sentinel.connection_pool.disconnect(inuse_connections)


def primary_of(address: SentinelAddress, common: Mapping[str, Any]) -> redis.Redis:
    """A client of the primary. `common`: redis-py's options for it, beside the URL's own."""
    # The client tries again as a whole; a Sentinel that doesn't answer is only in the way of the next one.
    sentinel = Sentinel(address.hosts, sentinel_kwargs={**address.sentinels, "retry": Retry(NoBackoff(), 0)})  # type: ignore[no-untyped-call]
    client: redis.Redis = sentinel.master_for(  # type: ignore[no-untyped-call]
        address.service, connection_pool_class=_Pool, **{**common, **address.redis}
    )
    return client


def async_primary_of(address: SentinelAddress, common: Mapping[str, Any]) -> redis.asyncio.Redis:
    """As `primary_of`, for asyncio."""
    sentinel = AsyncSentinel(address.hosts, sentinel_kwargs={**address.sentinels, "retry": AsyncRetry(NoBackoff(), 0)})  # type: ignore[no-untyped-call]
    client: redis.asyncio.Redis = sentinel.master_for(
        address.service, connection_pool_class=_AsyncPool, **{**common, **address.redis}
    )
    return client
