"""A worker's registration: its start with a Redis that is away, a registration that Redis lost, what RQ registers."""

from __future__ import annotations

import re
import threading
from contextlib import closing
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
from pydantic import SecretStr
from rq import Queue, SimpleWorker
from rq import Worker as RqWorker

from tests.engines import CountingEngine
from tests.faults.proxy import Proxy
from tests.waiting import wait_until
from tests.workers import MODEL, VOCABULARY, running_worker, served, submit
from tokenrelay.shared.errors import RedisUnusable
from tokenrelay.shared.redis.connections import connect
from tokenrelay.shared.settings import WorkerSettings
from tokenrelay.shared.store.registrations import WORKER_TTL_S
from tokenrelay.shared.wire import keys
from tokenrelay.shared.wire.entries import text
from tokenrelay.worker.worker import Worker

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


def worker_on(url: str, engine: CountingEngine | None = None) -> Worker:
    """Of a client that tries everything once, so that a Redis away for a moment is one that is away for long."""
    settings = WorkerSettings(redis_url=SecretStr(url), heartbeat_ms=50)
    engine = engine or CountingEngine(vocabulary=VOCABULARY)
    return Worker(settings, served(engine), connection=connect(url, retries=0))


def go_away(proxy: Proxy) -> None:
    """Until it was called in vain."""
    proxy.switch("drop")
    called = proxy.connections

    def come_back() -> None:
        wait_until(lambda: proxy.connections > called)
        proxy.switch("pass")

    threading.Thread(target=come_back, daemon=True).start()


@pytest.mark.parametrize("listening", [False, True])
def test_a_start_waits_for_a_redis_that_is_away(
    redis_server: RedisServer, redis: Redis, pipeline: Pipeline, listening: bool
) -> None:
    with closing(Proxy(redis_server.port)) as proxy:
        worker = worker_on(proxy.url)
        if listening:
            worker.listeners[0].start()
        go_away(proxy)
        request_id = submit(pipeline, datetime.now(UTC))
        assert worker.work(burst=True)
        assert redis.hget(keys.request(request_id), "state") == b"incomplete"  # its limit of tokens
        worker.connection.close()


def test_a_worker_knows_a_registration_of_its_own(redis_server: RedisServer, redis: Redis) -> None:
    """Registered, and the answer was lost: no namesake, to be waited for."""
    worker = worker_on(redis_server.url)
    key = keys.rq_worker(worker.name)
    worker.registration.register()
    born = redis.hget(key, "birth")
    redis.persist(key)
    worker.registration.register()
    assert redis.hget(key, "birth") == born
    assert redis.ttl(key) > 0
    worker.registration.remove()
    worker.connection.close()


def test_a_registration_that_redis_lost_is_written_again(redis_server: RedisServer, redis: Redis) -> None:
    with running_worker(redis_server.url) as worker:
        key = keys.rq_worker(worker.name)
        wait_until(lambda: redis.hget(key, "state") == b"idle")
        before = redis.hgetall(key)
        redis.delete(key, keys.RQ_WORKERS, *map(keys.rq_workers, keys.queues(MODEL)))
        wait_until(lambda: redis.hgetall(key).keys() == before.keys())
        registered = RqWorker.all(queue=Queue(keys.queue(MODEL, "low"), connection=redis))
        assert [(each.name, each.get_state()) for each in registered] == [(worker.name, "idle")]
        assert 0 < redis.ttl(key) <= WORKER_TTL_S


def test_we_register_what_rqs_own_worker_does(redis_server: RedisServer, redis: Redis) -> None:
    theirs = SimpleWorker(["theirs"], connection=redis)
    theirs.register_birth()  # type: ignore[no-untyped-call]
    ours = worker_on(redis_server.url)
    ours.registration.register()
    written, own = redis.hgetall(theirs.key), redis.hgetall(keys.rq_worker(ours.name))
    same = {b"hostname", b"pid", b"version", b"python_version"}
    assert written.keys() <= own.keys()
    assert {name: own[name] for name in same} == {name: written[name] for name in same}
    births = [re.sub("[0-9]", "0", text(each[b"birth"])) for each in (written, own)]
    assert births == ["0000-00-00T00:00:00.000000Z"] * 2
    assert re.fullmatch("127.0.0.1:[0-9]+", text(own[b"ip_address"]))
    theirs.register_death()  # type: ignore[no-untyped-call]
    ours.registration.remove()
    assert redis.hgetall(theirs.key).keys() - redis.hgetall(keys.rq_worker(ours.name)).keys() == set()
    ours.connection.close()


def test_a_start_that_is_repeated_listens_once(redis_server: RedisServer, redis: Redis) -> None:
    worker = worker_on(redis_server.url)
    before, channel = threading.active_count(), keys.rq_commands(worker.name)
    for listener in [*worker.listeners, *worker.listeners]:
        listener.start()
    assert threading.active_count() == before + 2, "one for each plane"
    assert redis.pubsub_numsub(channel) == [(channel.encode(), 1)]
    for listener in worker.listeners:
        listener.stop()
    assert threading.active_count() == before
    worker.connection.close()


def test_a_start_fails_at_a_wrong_password(make_redis_server: MakeRedisServer) -> None:
    server = make_redis_server(password="right")
    engine = Stoppable(vocabulary=VOCABULARY)
    with pytest.raises(RedisUnusable, match="check user and password"):
        worker_on(f"redis://:wrong@127.0.0.1:{server.port}/0", engine).work()
    assert engine.stopped


def test_a_start_fails_at_a_missing_right(redis_server: RedisServer, redis: Redis) -> None:
    redis.execute_command("ACL", "SETUSER", "reader", "on", ">word", "~*", "&*", "+@read", "+@connection", "+info")  # type: ignore[no-untyped-call]
    engine = Stoppable(vocabulary=VOCABULARY)
    try:
        worker = worker_on(f"redis://reader:word@127.0.0.1:{redis_server.port}/0", engine)
        with pytest.raises(RedisUnusable, match="lacks a right"):
            worker.work(burst=True)
    finally:
        redis.execute_command("ACL", "DELUSER", "reader")  # type: ignore[no-untyped-call]
    assert engine.stopped
