"""Redis clients without a server: fakeredis, made to know the project's Lua scripts.

fakeredis runs Lua by lupa but doesn't know the `#!lua` line that Redis 7 takes. Its servers are given each script
beforehand, without that line, under the SHA-1 that clients call it by.
"""

from __future__ import annotations

import hashlib

from fakeredis import FakeAsyncRedis, FakeRedis, FakeServer

from tokenrelay.shared.store.scripts import SCRIPTS, script


def fake_redis() -> FakeRedis:
    """A client of a new, empty Redis in this process. Blocking reads block, and wake as on a server."""
    server = FakeServer()
    for name in (name for names in SCRIPTS.values() for name in names):
        sha1 = hashlib.sha1(script(name).source(modern=True).encode(), usedforsecurity=False).hexdigest()
        server.script_cache[sha1.encode()] = script(name).source(modern=False).encode()
    return FakeRedis(server=server)


def fake_async_redis(client: FakeRedis) -> FakeAsyncRedis:
    """An asyncio client of the same Redis. As any, it belongs to the event loop that it is first used in."""
    return FakeAsyncRedis(server=client.connection_pool.connection_kwargs["server"])
