"""pytest fixtures: an in-process Redis and a scripted worker. pytest discovers them automatically.

pytest imports this module wherever tokenrelay is installed, also without the extra `testing`. So it imports only pytest
until a fixture is used, and isn't in tokenrelay.testing, whose import needs fakeredis.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fakeredis import FakeAsyncRedis, FakeRedis

    from tokenrelay.testing import ScriptedWorker


@pytest.fixture
def tokenrelay_redis() -> Iterator[FakeRedis]:
    """A client of an empty Redis for this test: `Producer(connection=tokenrelay_redis)`."""
    from tokenrelay.testing import fake_redis

    with fake_redis() as client:
        yield client


@pytest.fixture
def tokenrelay_async_redis(tokenrelay_redis: FakeRedis) -> FakeAsyncRedis:
    """An asyncio client of the same Redis: `AsyncProducer(connection=tokenrelay_async_redis)`."""
    from tokenrelay.testing import fake_async_redis

    return fake_async_redis(tokenrelay_redis)


@pytest.fixture
def tokenrelay_worker(tokenrelay_redis: FakeRedis) -> Iterator[ScriptedWorker]:
    """A running scripted worker on that Redis. It answers "It is sunny and warm." by default."""
    from tokenrelay.testing import ScriptedWorker

    with ScriptedWorker(tokenrelay_redis) as worker:
        yield worker
