"""A worker's start, with a Redis that goes away behind the loading of its model."""

from __future__ import annotations

import threading
from contextlib import closing
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
from pydantic import SecretStr

from tests.engines import CountingEngine
from tests.faults.proxy import Proxy
from tests.workers import VOCABULARY, ThreadedWorker, served, submit
from tokenrelay.shared import keys
from tokenrelay.shared.connections import connect
from tokenrelay.shared.errors import RedisUnusable
from tokenrelay.shared.settings import WorkerSettings

if TYPE_CHECKING:
    from redis import Redis

    from tests.conftest import MakeRedisServer
    from tests.redis_servers import RedisServer
    from tokenrelay.shared.commands import Pipeline

AWAY_S = 0.3


def worker_on(url: str) -> ThreadedWorker:
    """Of a client that tries everything once, so that a Redis away for a moment is one that is away for long."""
    settings = WorkerSettings(redis_url=SecretStr(url), heartbeat_ms=50)
    return ThreadedWorker(
        settings=settings,
        served=served(CountingEngine(vocabulary=VOCABULARY)),
        connection=connect(url, retries=0),
    )


def go_away(proxy: Proxy) -> None:
    proxy.switch("drop")
    threading.Timer(AWAY_S, proxy.switch, ("pass",)).start()


def test_a_start_outlasts_a_redis_that_is_away(redis_server: RedisServer, redis: Redis, pipeline: Pipeline) -> None:
    with closing(Proxy(redis_server.port)) as proxy:
        go_away(proxy)
        worker = worker_on(proxy.url)
        go_away(proxy)
        request_id = submit(pipeline, datetime.now(UTC))
        assert worker.work(burst=True)
        assert redis.hget(keys.request(request_id), "state") == b"incomplete"  # its limit of tokens
        worker.connection.close()


def test_a_worker_knows_a_registration_of_its_own(redis_server: RedisServer, redis: Redis) -> None:
    """Registered, and the answer was lost: no namesake, to be waited for."""
    worker = worker_on(redis_server.url)
    worker.register_birth()
    born = redis.hget(worker.key, "birth")
    redis.persist(worker.key)
    worker.register_birth()
    assert redis.hget(worker.key, "birth") == born
    assert redis.ttl(worker.key) > 0
    worker.register_death()
    worker.connection.close()


def test_a_start_doesnt_outlast_a_wrong_password(make_redis_server: MakeRedisServer) -> None:
    server = make_redis_server(password="right")
    with pytest.raises(RedisUnusable, match="check user and password"):
        worker_on(f"redis://:wrong@127.0.0.1:{server.port}/0")
