"""Detects keys that would stay in Redis forever: promise 6, memory is bounded."""

from __future__ import annotations

import fnmatch
from typing import TYPE_CHECKING, Final

from tokenrelay.shared.wire import keys
from tokenrelay.shared.wire.entries import text

if TYPE_CHECKING:
    import redis

OWNED: Final = {
    "rq:queues": "one member per queue name",
    "rq:queue:*": "bounded by max_queue_depth; emptied by take",
    "rq:workers": "one member per live worker; RQ drops the dead ones",
    "rq:workers:*": "the same, per queue",
    "rq:wip:*": "scores are expiries; RQ's clean-up drops what ran out",
    "rq:finished:*": "scores are expiries",
    "rq:failed:*": "scores are expiries",
    "rq:canceled:*": "scores are expiries",
}
"""Keys that may have no TTL, and what bounds them. `tokenrelay:claimed:*` is owned by the requests in it: see below."""


def leaked_keys(client: redis.Redis) -> list[str]:
    """Keys with neither a TTL nor an owner, each with the reason."""
    leaks = []
    for raw in client.scan_iter(count=1000):
        key = text(raw)
        if client.ttl(raw) == -1 and not any(fnmatch.fnmatchcase(key, pattern) for pattern in OWNED):
            leaks += _leak(client, key)
    return sorted(leaks)


def _leak(client: redis.Redis, key: str) -> list[str]:
    if not key.startswith(keys.claimed("")):
        return [f"{key}: no TTL and no owner"]
    members = [text(member) for member in client.zrange(key, 0, -1)]
    return [f"{key}: claims {member}, which is gone" for member in members if not client.exists(keys.request(member))]
