"""pytest fixtures: a Redis in the test's own process and a scripted worker on it. pytest loads them by itself.

Imported in every pytest run where tokenrelay is installed, also without the extra `testing`: so nothing but pytest is
imported before a fixture is asked for, and the module isn't in tokenrelay.testing, whose import needs fakeredis.
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
    """A client of an empty Redis of the test's own: `Producer(connection=tokenrelay_redis)`."""
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
    """A scripted worker that serves that Redis; it says that it is sunny and warm until it's told otherwise."""
    from tokenrelay.testing import ScriptedWorker

    with ScriptedWorker(tokenrelay_redis) as worker:
        yield worker
