"""A producer, a consumer and a scripted writer on the shared server, for tests of readers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.readers import Background
from tests.writers import Writer
from tokenrelay.producer import (
    Consumer,
    Producer,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from redis import Redis

    from tests.redis_servers import RedisServer
    from tokenrelay.producer import Generation


@pytest.fixture
def producer(redis_server: RedisServer) -> Iterator[Producer]:
    with Producer(redis_server.url) as producer:
        yield producer


@pytest.fixture
def consumer(redis_server: RedisServer) -> Iterator[Consumer]:
    with Consumer(redis_server.url) as consumer:
        yield consumer


@pytest.fixture
def writer(redis: Redis) -> Writer:
    writer = Writer(redis)
    writer.appear()
    return writer


@pytest.fixture
def running(producer: Producer, writer: Writer) -> Generation:
    """A generation of which three tokens are written."""
    generation = producer.submit("x")
    assert writer.take() == generation.request_id
    writer.claim(generation.request_id)
    writer.append(generation.request_id, "It", " is", " sunny")
    return generation


@pytest.fixture
def background(redis: Redis) -> Background:
    return Background(redis)
