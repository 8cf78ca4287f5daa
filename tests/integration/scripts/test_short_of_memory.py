"""A full Redis: what takes memory is refused, what ends requests works (Redis ≥ 7)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from redis.exceptions import OutOfMemoryError

from tests.integration.scripts.queue_plane import (
    OTHER_ID,
    THIRD_ID,
    enqueue,
)
from tests.redis_servers import skip_before_redis_7
from tests.streams import REQUEST_ID
from tests.token_plane import TokenPlane, read_stream, through
from tokenrelay.shared.redis.batches import Pipeline
from tokenrelay.shared.wire import keys
from tokenrelay.shared.wire.answer import assemble
from tokenrelay.shared.wire.entries import State

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import MakeRedisServer
    from tests.redis_servers import RedisServer


@pytest.fixture
def full(make_redis_server: MakeRedisServer) -> Iterator[tuple[RedisServer, TokenPlane]]:
    server = make_redis_server("--maxmemory-policy", "noeviction")
    with server.client() as client:
        skip_before_redis_7(client, "a script can't be allowed to write where memory is short")
        plane = TokenPlane(through(Pipeline(client)))
        for request_id in (REQUEST_ID, OTHER_ID, THIRD_ID):
            TokenPlane(through(Pipeline(client)), request_id).create()
        plane.claim("x1")
        client.config_set("maxmemory", 1)
        yield server, plane
        client.config_set("maxmemory", 0)


def test_create_and_append_are_refused(full: tuple[RedisServer, TokenPlane]) -> None:
    server, plane = full
    with pytest.raises(OutOfMemoryError):
        plane.append("1:x1", 1, ("a", 1))
    with pytest.raises(OutOfMemoryError):
        plane.score("1:x1", "[null]")
    with server.client() as client:
        fresh = TokenPlane(through(Pipeline(client)), "u" * 22)
        with pytest.raises(OutOfMemoryError):
            fresh.create()
        with pytest.raises(OutOfMemoryError):
            enqueue(Pipeline(client))
        assert client.exists(keys.request(fresh.request_id), keys.stream(fresh.request_id)) == 0


def test_what_ends_requests_works(full: tuple[RedisServer, TokenPlane]) -> None:
    server, plane = full
    with server.client() as client:
        assert plane.renew("1:x1") == ["OK"]
        assert plane.release("x1") == ["OK"]
        assert plane.claim("x2")[0] == "OK"
        assert plane.finish("2:x2", 1, ("a", 1)) == ["OK"]
        other = TokenPlane(through(Pipeline(client)), OTHER_ID)
        assert other.cancel()[0] == "OK"
        third = TokenPlane(through(Pipeline(client)), THIRD_ID)
        assert third.expire()[0] == "EARLY"
        assert third.suspect() == ["FREE"]
        assert assemble(REQUEST_ID, read_stream(client)).state == State.COMPLETED
