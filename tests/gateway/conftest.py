"""A gateway on the shared Redis, a client, and a scripted writer instead of a worker."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import pytest

from tests.gateway.live import LiveGateway, WakingWriter
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    import httpx
    from redis import Redis

    from tests.redis_servers import RedisServer


class MakeGateway(Protocol):
    """Start another gateway on the shared Redis; settings by name."""

    def __call__(self, **settings: Any) -> LiveGateway: ...


@pytest.fixture
def make_gateway(redis_server: RedisServer) -> Iterator[MakeGateway]:
    made: list[LiveGateway] = []

    def make(**settings: Any) -> LiveGateway:
        made.append(LiveGateway(**{"redis_url": redis_server.url, **settings}))
        return made[-1]

    yield make
    for gateway in made:
        gateway.stop()


@pytest.fixture(scope="session")
def standing_gateway(redis_server: RedisServer) -> Iterator[LiveGateway]:
    """A gateway shared by tests without special settings: it is stateless, so tests don't affect each other."""
    gateway = LiveGateway(redis_server.url)
    yield gateway
    gateway.stop()


@pytest.fixture
def gateway(standing_gateway: LiveGateway) -> Iterator[LiveGateway]:
    yield standing_gateway
    wait_until(lambda: not standing_gateway.gateway.hub.feeds)


@pytest.fixture
def http(gateway: LiveGateway) -> Iterator[httpx.Client]:
    with gateway.client() as client:
        yield client


@pytest.fixture
def writer(redis: Redis) -> WakingWriter:
    writer = WakingWriter(redis)
    writer.appear()
    return writer


@pytest.fixture
def running(http: httpx.Client, writer: WakingWriter) -> str:
    """The ID of a request with three written tokens."""
    request_id: str = http.post("/requests", json={"prompt": "x"}).json()["request_id"]
    assert writer.take() == request_id
    writer.claim(request_id)
    writer.append(request_id, "It", " is", " sunny")
    return request_id
