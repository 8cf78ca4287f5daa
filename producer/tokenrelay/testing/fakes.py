"""fakeredis clients with the project's Lua scripts preloaded.

fakeredis runs Lua with lupa but can't parse the `#!lua` line of Redis 7. So each script is preloaded without that line,
under the SHA-1 by which clients call it.
"""

from __future__ import annotations

import hashlib

from fakeredis import FakeAsyncRedis, FakeRedis, FakeServer

from tokenrelay.shared.store.scripts import SCRIPTS, script


def fake_redis() -> FakeRedis:
    """A client of a new, empty in-process Redis. Blocking reads work as on a server."""
    server = FakeServer()
    for name in (name for names in SCRIPTS.values() for name in names):
        sha1 = hashlib.sha1(script(name).source(modern=True).encode(), usedforsecurity=False).hexdigest()
        server.script_cache[sha1.encode()] = script(name).source(modern=False).encode()
    return FakeRedis(server=server)


def fake_async_redis(client: FakeRedis) -> FakeAsyncRedis:
    """An asyncio client of the same Redis. It belongs to the event loop in which it's first used."""
    return FakeAsyncRedis(server=client.connection_pool.connection_kwargs["server"])
