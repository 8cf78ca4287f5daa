"""Advice for redis-py's errors, from the error alone: it knows neither client nor server."""

from __future__ import annotations

import re
from typing import Final

from redis.exceptions import (
    AskError,
    AuthenticationError,
    AuthorizationError,
    BusyLoadingError,
    ClusterError,
    ConnectionError,
    InvalidResponse,
    NoPermissionError,
    RedisError,
    TimeoutError,
)

CLUSTER: Final = (
    "Redis Cluster isn't supported for the queue; use one Redis without cluster mode, "
    "or a primary with replicas behind Sentinels (redis+sentinel://)"
)
_CREDENTIALS: Final = "check user and password in {setting}"
_RIGHTS: Final = "this Redis user lacks a right; give it the one named, or use another user"
_NO_REDIS: Final = "what answers there isn't Redis: check host and port in {setting}"

_RULES: Final[tuple[tuple[type[RedisError], str, str], ...]] = (
    # By their words: redis-py has no class for these, or only its newer versions have.
    (
        ConnectionError,
        "^Too many connections|^No connection available",
        "this client's own pool is full: raise its max_connections, or let fewer threads share it",
    ),
    (RedisError, "max number of clients", "it takes no more clients: raise maxclients there, or end some"),
    (RedisError, "protected mode", "set a password there (requirepass), and in {setting}"),
    (
        RedisError,
        "certificate",
        "the server's certificate isn't trusted, or is another host's: give its CA as rediss://…?ssl_ca_certs=/path/ca.pem",
    ),
    (RedisError, r"\bssl\b|\btls\b", "rediss:// is for a port that speaks TLS, redis:// for one that doesn't"),
    (RedisError, "too many open files", "this process may open no more files: raise ulimit -n"),
    (
        RedisError,
        "name or service|name resolution|nodename|no address associated|getaddrinfo",
        "that host isn't known: check its name in {setting}, and the DNS",
    ),
    (RedisError, "permission denied", "this user may not open that socket: check its owner and rights"),
    (
        RedisError,
        "no master found",
        "check the service's name in {setting}, and that the Sentinels and the primary are up",
    ),
    (AuthenticationError, "", _CREDENTIALS),
    (AuthorizationError, "", _CREDENTIALS),
    (RedisError, "NOAUTH|WRONGPASS", _CREDENTIALS),
    # By their words too: Redis 6.2 gives what stopped a script inside of an error of the script's.
    (RedisError, "-NOPERM", _RIGHTS),
    (RedisError, "read only replica", "this is a read-only replica; give the URL of its primary"),
    (RedisError, "used memory > 'maxmemory'", "Redis is full: raise maxmemory, or wait until retention frees some"),
    (NoPermissionError, "", _RIGHTS),
    (RedisError, "MASTERDOWN|link with master", "this is a replica without its primary; give the primary's URL"),
    (BusyLoadingError, "", "Redis is loading its data: try again in a moment"),
    (RedisError, "MISCONF", "Redis can't write to its disk: free some space"),
    (RedisError, "NOREPLICAS", "too few replicas are connected: see min-replicas-to-write there"),
    (RedisError, "busy running a script", "wait for that script's end, or end it with SCRIPT KILL"),
    (AskError, "", CLUSTER),
    (ClusterError, "", CLUSTER),
    (RedisError, "same slot|^CROSSSLOT|cluster", CLUSTER),
    (RedisError, "DB index", "check the database's number, the last part of {setting}"),
    (RedisError, "unknown command", "is that a Redis, and not a Sentinel (redis+sentinel://) or a proxy?"),
    (InvalidResponse, "", _NO_REDIS),
    (ConnectionError, "protocol error", _NO_REDIS),
    (
        TimeoutError,
        "connecting",
        "nothing answers there: check host, port and firewall, and that both sides speak TLS (rediss://) or none",
    ),
    (
        TimeoutError,
        "",
        "it takes connections but doesn't answer in time: is it stopped, or busy with a slow command (SLOWLOG GET)?",
    ),
    (
        ConnectionError,
        "closed|reset by peer|broken pipe",
        "it hung up: it was stopped, speaks TLS (rediss://), or is in protected mode (set requirepass)",
    ),
    (ConnectionError, "", "is it running there? start it, or set {setting}"),
    (RedisError, "", "see Redis's log"),
)
"""Kind of error, a pattern in its words, and the advice. The first that fits is given."""


def advice(error: RedisError, setting: str) -> str:
    """One clause that says what to do. `setting`: what gave the server's URL."""
    return next(
        clause.format(setting=setting)
        for kind, words, clause in _RULES
        if isinstance(error, kind) and re.search(words, str(error), re.IGNORECASE)
    )
