"""Connecting to Redis: clients with retries, checks of a server's fitness, and redis-py's errors as one line of advice.

A durable queue needs a writable Redis that never evicts live streams and has XADD NOMKSTREAM (6.2).
"""

from __future__ import annotations

import contextlib
import functools
import re
from importlib import metadata
from typing import TYPE_CHECKING, Any, Final

import redis
import redis.asyncio
from redis import exceptions
from redis.asyncio.retry import Retry as AsyncRetry
from redis.asyncio.sentinel import SentinelConnectionPool as AsyncSentinelConnectionPool
from redis.backoff import ExponentialBackoff
from redis.retry import Retry
from redis.sentinel import SentinelConnectionPool

from tokenrelay.shared.errors import RedisUnusable, SettingsError
from tokenrelay.shared.redis import sentinel
from tokenrelay.shared.redis.advice import CLUSTER, advice

if TYPE_CHECKING:
    from collections.abc import Mapping

MIN_VERSION: Final = (6, 2)
_RETRIED: Final = (exceptions.ConnectionError, exceptions.TimeoutError)
TIMEOUT_S: Final = 5.0
_MAX_CONNECTIONS: Final = 1 << 16
"""Each thread that waits has one. redis-py 8 stops at 100, with an error; Redis has its own limit, maxclients."""
_IN_PIPELINE: Final = re.compile(r"^Command # \d+ \(.*?\) of pipeline caused error: ", re.DOTALL)
"""What redis-py puts before a refused command's error: the command's beginning, which tells the user nothing."""
_CLUSTER_URL: Final = re.compile(r"rediss?[+-]cluster://")
_IN_SCRIPT: Final = re.compile(r"^Error running script \(call to \w+\): (@user_script: ?\d+: )*-?")
_KILLED: Final = "Script killed"
"""By an operator's SCRIPT KILL."""
_MAX_CHARS: Final = 200
_SETTING: Final = "TOKENRELAY_REDIS_URL"
_USERINFO: Final = re.compile(r"^((?:[^/]*//)?[^:/@]*:).*@")
_PASSWORD_PARAMETER: Final = re.compile(r"([?&](?:sentinel_)?password=)[^&]*")


def connect(url: str, *, retries: int = 3, timeout_s: float = TIMEOUT_S) -> redis.Redis:
    """A client of the Redis at `url`. Connects at the first command. Raises SettingsError for a malformed URL."""
    options = {**_client_options(timeout_s), "retry": Retry(ExponentialBackoff(cap=0.2, base=0.01), retries)}
    try:
        if url.startswith(sentinel.SCHEMES):
            return sentinel.primary_of(sentinel.SentinelAddress.parse(url), options)
        return redis.Redis.from_url(url, **options)
    except ValueError:
        raise _bad_url(url) from None


def connect_async(url: str, *, retries: int = 3) -> redis.asyncio.Redis:
    """As `connect`, for asyncio."""
    options = {**_client_options(TIMEOUT_S), "retry": AsyncRetry(ExponentialBackoff(cap=0.2, base=0.01), retries)}
    try:
        if url.startswith(sentinel.SCHEMES):
            return sentinel.async_primary_of(sentinel.SentinelAddress.parse(url), options)
        return redis.asyncio.Redis.from_url(url, **options)
    except ValueError:
        raise _bad_url(url) from None


def _client_options(timeout_s: float) -> dict[str, Any]:
    return {
        "retry_on_error": list(_RETRIED),
        "socket_connect_timeout": timeout_s,
        "socket_timeout": timeout_s,
        "health_check_interval": 30,
        "max_connections": _MAX_CONNECTIONS,
        **_driver_info(),
    }


@functools.cache
def _driver_info() -> dict[str, Any]:
    """One for all connections, for each without one reads redis-py's version from its package's files: 1 ms.

    As CLIENT LIST shows it: lib-name=redis-py(tokenrelay_v0.1.0). A redis-py before 7.1 has none and reads once.
    """
    if not hasattr(redis, "DriverInfo"):
        return {}
    driver = redis.DriverInfo()
    with contextlib.suppress(metadata.PackageNotFoundError):  # run from a source folder, or frozen
        driver.add_upstream_driver("tokenrelay", metadata.version("tokenrelay"))
    return {"driver_info": driver}


def _bad_url(url: str) -> SettingsError:
    if _CLUSTER_URL.match(url):
        return SettingsError(f"TOKENRELAY_REDIS_URL: {CLUSTER}")
    # Without the parser's own words, which may quote a piece of the password.
    return SettingsError(
        f"TOKENRELAY_REDIS_URL: {without_password(url)!r} is no Redis URL; "
        "give one such as redis://:password@host:6379/0, special characters of a password as %XX"
    )


def without_password(url: str) -> str:
    """The URL as it may be shown. Works on malformed ones too, such as with a raw / in the password."""
    return _PASSWORD_PARAMETER.sub(r"\1***", _USERINFO.sub(r"\1***@", url))


def address(client: redis.Redis | redis.asyncio.Redis) -> str:
    """host:port, socket path or Sentinel service of a client, for messages."""
    pool = client.connection_pool
    if isinstance(pool, SentinelConnectionPool | AsyncSentinelConnectionPool):
        return f"service {pool.service_name} of its Sentinels"
    options = pool.connection_kwargs
    return str(options.get("path") or f"{options.get('host', 'localhost')}:{options.get('port', 6379)}")


def check_fit(info: Mapping[str, Any]) -> None:
    """Check a reply to INFO. Raises RedisUnusable for a version, role or eviction policy that would lose tokens."""
    if info.get("redis_mode") == "sentinel":
        raise RedisUnusable("this is a Sentinel; give a URL such as redis+sentinel://host:26379/SERVICE/0")
    version = str(info.get("redis_version", "0"))
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdecimal())
    if numbers < MIN_VERSION:
        raise RedisUnusable(f"Redis is version {version}; tokenrelay needs 6.2 or newer: upgrade the server")
    if str(info.get("role", "master")) != "master":
        raise RedisUnusable("this Redis is a read-only replica; give the URL of its primary")
    if str(info.get("cluster_enabled", 0)) == "1":
        raise RedisUnusable(f"this Redis is a cluster's node. {CLUSTER}")
    policy = str(info.get("maxmemory_policy", "noeviction"))
    if policy != "noeviction":
        raise RedisUnusable(
            f"Redis has maxmemory-policy {policy}, which evicts live token streams; "
            "run CONFIG SET maxmemory-policy noeviction (and put it into redis.conf)"
        )


def is_for_now(error: exceptions.ResponseError) -> bool:
    """Whether the server refuses a write for now: memory, disk, role, rights.

    An unknown script counts: one that is unknown right after it was loaded met a failover.
    """
    states = (
        exceptions.OutOfMemoryError,
        exceptions.ReadOnlyError,
        exceptions.NoPermissionError,
        exceptions.NoScriptError,
    )
    temporary = ("MISCONF", "OOM", "NOREPLICAS", "LOADING", "BUSY ", "MASTERDOWN", "TRYAGAIN", "CLUSTERDOWN", _KILLED)
    return isinstance(error, states) or any(word in str(error) for word in temporary)


def is_transient(error: Exception) -> bool:
    """Whether a retry may succeed: Redis can't be reached, or refuses for now."""
    return isinstance(error, _RETRIED) or (isinstance(error, exceptions.ResponseError) and is_for_now(error))


def explain(error: exceptions.RedisError, where: str, setting: str = _SETTING) -> RedisUnusable:
    """A redis-py error in one line that says what to do. `where`: the server's address, `setting`: what gave it."""
    message = _IN_SCRIPT.sub("", _IN_PIPELINE.sub("", str(error))).split("\n", 1)[0] or type(error).__name__
    if len(message) > _MAX_CHARS:
        message = message[:_MAX_CHARS].rsplit(" ", 1)[0] + " …"
    return RedisUnusable(f"Redis at {where}: {message.rstrip('.')}; {advice(error, setting)}")
