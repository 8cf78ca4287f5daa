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
from tests.waiting import wait_until
from tests.workers import VOCABULARY, ThreadedWorker, served, submit
from tokenrelay.shared.errors import RedisUnusable
from tokenrelay.shared.redis.connections import connect
from tokenrelay.shared.settings import WorkerSettings
from tokenrelay.shared.wire import keys

if TYPE_CHECKING:
    from redis import Redis

    from tests.conftest import MakeRedisServer
    from tests.redis_servers import RedisServer
    from tokenrelay.shared.redis.batches import Pipeline


class Stoppable(CountingEngine):
    """The real one's thread would keep the process from ending."""

    stopped = False

    def stop(self) -> None:
        self.stopped = True
        super().stop()


def worker_on(url: str, engine: CountingEngine | None = None) -> ThreadedWorker:
    """Of a client that tries everything once, so that a Redis away for a moment is one that is away for long."""
    settings = WorkerSettings(redis_url=SecretStr(url), heartbeat_ms=50)
    return ThreadedWorker(
        settings=settings,
        served=served(engine or CountingEngine(vocabulary=VOCABULARY)),
        connection=connect(url, retries=0),
    )


def go_away(proxy: Proxy) -> None:
    """Until it was called in vain."""
    proxy.switch("drop")
    called = proxy.connections

    def come_back() -> None:
        wait_until(lambda: proxy.connections > called)
        proxy.switch("pass")

    threading.Thread(target=come_back, daemon=True).start()


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


def test_a_start_that_is_made_again_listens_once(redis_server: RedisServer) -> None:
    worker = worker_on(redis_server.url)
    worker.bootstrap(None)
    thread = worker.pubsub_thread
    worker.bootstrap(None)
    assert worker.pubsub_thread is thread
    worker.teardown()  # type: ignore[no-untyped-call]
    worker.connection.close()


def test_a_start_doesnt_outlast_a_wrong_password(make_redis_server: MakeRedisServer) -> None:
    server = make_redis_server(password="right")
    engine = Stoppable(vocabulary=VOCABULARY)
    with pytest.raises(RedisUnusable, match="check user and password"):
        worker_on(f"redis://:wrong@127.0.0.1:{server.port}/0", engine)
    assert engine.stopped


def test_a_start_doesnt_outlast_a_missing_right(redis_server: RedisServer, redis: Redis) -> None:
    redis.execute_command("ACL", "SETUSER", "reader", "on", ">word", "~*", "&*", "+@read", "+@connection", "+info")  # type: ignore[no-untyped-call]
    engine = Stoppable(vocabulary=VOCABULARY)
    try:
        worker = worker_on(f"redis://reader:word@127.0.0.1:{redis_server.port}/0", engine)
        with pytest.raises(RedisUnusable, match="lacks a right"):
            worker.work(burst=True)
    finally:
        redis.execute_command("ACL", "DELUSER", "reader")  # type: ignore[no-untyped-call]
    assert engine.stopped
