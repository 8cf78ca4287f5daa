"""Fleets: a worker costs Redis the same however many there are, and one worker at a time does maintenance."""

from __future__ import annotations

import threading
import time
from collections import Counter
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import SecretStr

from tests.engines import CountingEngine
from tests.fleet import Meter, fleet, measured
from tests.integration.scripts.queue_plane import claimed
from tests.integration.test_metrics import intake_over
from tests.integration.test_repairs import QUEUE, claim, taken
from tests.integration.test_worker import job, state
from tests.two_planes import pipeline_on
from tests.waiting import wait_until
from tests.workers import MODEL, VOCABULARY, running_worker, submit
from tokenrelay.shared.redis.batches import Pipeline
from tokenrelay.shared.redis.commands import Batch, Call
from tokenrelay.shared.redis.connections import connect
from tokenrelay.shared.settings import WorkerSettings
from tokenrelay.shared.store.jobs import Take, take_call
from tokenrelay.shared.store.scripts import script
from tokenrelay.shared.wire import keys
from tokenrelay.worker.core.figures import Figures
from tokenrelay.worker.maintenance.maintainer import LOCK_MS, PART_SIZE, Maintenance
from tokenrelay.worker.rq_mirror.registries import MOST_CANCELS

if TYPE_CHECKING:
    from redis import Redis

    from tests.conftest import MakeRedisServer
    from tests.redis_servers import RedisServer

NOW = datetime.now(UTC)
LOCK = keys.maintainer(keys.queues(MODEL)[0])
LOST_RACE = 3
"""Commands of an idle worker that is woken for a job which another one takes."""
LONG_AGO_S = 600
"""Longer than the requests' retention: no worker was there since."""
MANY = 900
"""Below the depth that `submit` allows."""


class Recording(Pipeline):
    """A pipeline that keeps the size of each batch."""

    def __init__(self, redis: Redis) -> None:
        super().__init__(redis)
        self.sizes: list[int] = []

    def run(self, batch: Batch, *, atomic: bool = False) -> list[Any]:
        self.sizes.append(len(batch))
        return super().run(batch, atomic=atomic)


class Blocked(Pipeline):
    """A pipeline of a Redis that doesn't answer before `answers` is set."""

    def __init__(self, redis: Redis) -> None:
        super().__init__(redis)
        self.asked, self.answers = threading.Event(), threading.Event()

    def run(self, batch: Batch, *, atomic: bool = False) -> list[Any]:
        self.asked.set()
        self.answers.wait(60)
        return super().run(batch, atomic=atomic)


def maintenance(pipeline: Pipeline) -> Maintenance:
    settings = WorkerSettings(redis_url=SecretStr("redis://127.0.0.1:1/0"))
    return Maintenance(pipeline, keys.queues(MODEL), frozenset, settings, Figures())


def run_until(maintainer: Maintenance, done: Any, rounds: int = 200) -> int:
    """Run rounds as soon as they are due; how many it took."""
    for number in range(1, rounds):
        maintainer._due = maintainer._registries_due = maintainer._claimed._list_due = 0.0
        maintainer.run()
        if done():
            return number
    raise AssertionError(f"not within {rounds} rounds")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_worker_costs_the_same_in_a_fleet_of_sixteen(redis: Redis, redis_server: RedisServer) -> None:
    """Every worker read all others' leases five times a second, and did all of `take` for each job of another's."""
    alone, few, many = (measured(redis, redis_server.url, workers, 3.0) for workers in (1, 4, 16))
    for fleet_of in (few, many):
        assert fleet_of.per_token <= 1.2 * alone.per_token, (alone, fleet_of)
        assert fleet_of.per_idle_worker_s <= 1.2 * alone.per_idle_worker_s, (alone, fleet_of)
        # Each enqueue wakes every idle worker: EXISTS, and the take of one that has lost the race.
        woken = LOST_RACE * (fleet_of.workers - 1)
        assert fleet_of.per_short_request <= 1.2 * alone.per_short_request + woken, (alone, fleet_of)


def test_a_look_for_work_that_finds_none_is_one_command(redis: Redis, pipeline: Pipeline) -> None:
    look = take_call(Take("w", keys.queues(MODEL), ("x1", "x2"), 60))
    pipeline.run([look])
    meter = Meter(redis)
    before = meter.read()
    pipeline.run([look])
    assert {name: calls for name, calls in meter.since(before).items() if calls} == {"evalsha": 1, "exists": 1}


def test_an_idle_worker_that_is_woken_for_nothing_sends_one_command(
    redis: Redis, pipeline: Pipeline, redis_server: RedisServer
) -> None:
    """Each enqueue wakes every idle worker: with a script each, a request cost 20 % more in a fleet of sixteen."""
    woken = intake_over(pipeline, redis_server)
    meter = Meter(redis)
    before = meter.read()
    assert woken.claim(8, idle=True) == []
    assert {name: calls for name, calls in meter.since(before).items() if calls} == {"exists": 1}
    assert woken.exhausted


def test_one_worker_at_a_time_maintains_the_queues(redis: Redis, pipeline: Pipeline) -> None:
    first, second = maintenance(pipeline), maintenance(pipeline)
    first.run()
    owner = redis.get(LOCK)
    assert 0 < redis.pttl(LOCK) <= LOCK_MS
    second._registries_due = 0.0
    meter = Meter(redis)
    before = meter.read()
    second.run()
    spent = {name for name, calls in meter.since(before).items() if calls}
    assert not spent & {"zrange", "hmget", "smembers"}, "it only asked for the lock"
    assert redis.get(LOCK) == owner
    assert 0 < second.due_in_s <= LOCK_MS / 1000
    second.leave()
    assert redis.get(LOCK) == owner, "it wasn't its own"
    first.leave()
    assert not redis.exists(LOCK)


@pytest.mark.parametrize("how", ["without expiry", "another type"])
def test_a_lock_that_nobody_of_ours_wrote_blocks_nobody(redis: Redis, pipeline: Pipeline, how: str) -> None:
    if how == "another type":
        redis.rpush(LOCK, "x")
    else:
        redis.set(LOCK, "x")
    maintainer = maintenance(pipeline)
    maintainer.run()
    assert 0 < redis.pttl(LOCK) <= LOCK_MS
    maintainer.leave()


@pytest.mark.slow
def test_another_worker_maintains_when_the_first_is_killed(redis: Redis, redis_server: RedisServer) -> None:
    """A lost host: its lock runs out before its leases do."""
    pipeline = pipeline_on(redis)
    with fleet(redis, redis_server.url, 1) as killed:
        request_id = submit(pipeline, NOW, max_new_tokens=5_000)
        wait_until(lambda: redis.xlen(keys.stream(request_id)) > 3)
        wait_until(lambda: redis.exists(LOCK))
        killed.kill()
        with running_worker(redis_server.url, CountingEngine(vocabulary=VOCABULARY, step_delay_s=0.05)):
            died: Any = redis.time()
            wait_until(lambda: redis.hget(keys.request(request_id), "attempt") == b"2", 30)
            took_s = redis.time()[0] - died[0]
            pipeline.run([Call(script("cancel"), keys.of_request(request_id), ("test",))])
            wait_until(lambda: claimed(redis, QUEUE) == [])
    assert took_s < 30


def cancelled_through_rq(redis: Redis, pipeline: Pipeline) -> list[str]:
    """Many queued requests, of which all jobs were cancelled, as RQ's Job.cancel leaves them."""
    ids = [submit(pipeline, NOW) for _ in range(MANY)]
    with redis.pipeline(transaction=False) as cancels:
        for request_id in ids:
            cancels.hset(keys.rq_job(request_id), "status", "canceled")
            cancels.zadd(keys.rq_registry("canceled", QUEUE), {request_id: int(NOW.timestamp()) - LONG_AGO_S})
        cancels.delete(keys.rq_queue(QUEUE))
        cancels.execute()
    return ids


@pytest.mark.slow
def test_thousands_of_cancelled_jobs_are_ended_in_bounded_rounds(make_redis_server: MakeRedisServer) -> None:
    """20,000 at once kept the heartbeat's thread for 6.3 s."""
    redis = make_redis_server().client()
    recording, canceled = Recording(redis), keys.rq_registry("canceled", QUEUE)
    ids = cancelled_through_rq(redis, pipeline_on(redis))
    maintainer = maintenance(recording)
    rounds = run_until(maintainer, lambda: not redis.zrange(canceled, "-inf", int(time.time()), byscore=True))
    assert Counter(state(redis, one) for one in ids) == {"cancelled": MANY}
    assert rounds >= MANY / MOST_CANCELS, "a round's share is bounded"
    assert max(recording.sizes) <= 2 * PART_SIZE + 1
    assert job(redis, ids[0]).get_status() == "canceled"
    maintainer.leave()


def test_refused_cancels_keep_no_other_waiting(make_redis_server: MakeRedisServer) -> None:
    """More than one look takes, before all others; here for a user who may not touch the keys of these."""
    server = make_redis_server()
    redis = server.client()
    rights = ("+@all", "~rq:*", "~tokenrelay:{ok*", "~tokenrelay:[^{]*", "&*")
    redis.execute_command("ACL", "SETUSER", "worker", "on", "nopass", *rights)  # type: ignore[no-untyped-call]
    canceled, then = keys.rq_registry("canceled", QUEUE), int(NOW.timestamp())
    redis.zadd(canceled, {f"no{number:020}": then for number in range(MOST_CANCELS)})
    redis.zadd(canceled, {"ok": then + 1})
    with connect(server.url.replace("://", "://worker:any@")) as restricted:
        maintainer = maintenance(Pipeline(restricted))
        run_until(maintainer, lambda: redis.zscore(canceled, "ok") is None, 5)
        redis.execute_command("ACL", "SETUSER", "worker", "~*")  # type: ignore[no-untyped-call]
        run_until(maintainer, lambda: not redis.zrange(canceled, "-inf", then + 1, byscore=True), 5)
        maintainer.leave()


@pytest.mark.slow
def test_thousands_of_claimed_requests_are_looked_at_in_bounded_batches(make_redis_server: MakeRedisServer) -> None:
    """Ended, with nobody left to tell RQ: as after thousands of expiries, or a fleet that was killed."""
    redis = make_redis_server().client()
    pipeline = pipeline_on(redis)
    ids = [submit(pipeline, NOW) for _ in range(MANY)]
    redis.zadd(keys.claimed(QUEUE), dict.fromkeys(ids, 1))
    redis.delete(keys.rq_queue(QUEUE))
    for first in range(0, MANY, 100):
        pipeline.run([Call(script("cancel"), keys.of_request(one), ("test",)) for one in ids[first : first + 100]])
    recording = Recording(redis)
    maintainer = maintenance(recording)
    run_until(maintainer, lambda: not redis.exists(keys.claimed(QUEUE)))
    assert max(recording.sizes) <= 2 * PART_SIZE + 1
    assert {job(redis, one).get_status() for one in ids[:: MANY // 10]} == {"canceled"}
    maintainer.leave()


def test_thousands_of_dead_registrations_are_forgotten(redis: Redis) -> None:
    dead = [f"rq:worker:dead{number}" for number in range(3_000)]
    workers = keys.rq_workers(QUEUE)
    redis.sadd(keys.RQ_WORKERS, *dead)
    redis.sadd(workers, *dead, "rq:worker:alive")
    redis.hset("rq:worker:alive", "state", "idle")
    redis.expire("rq:worker:alive", 60)
    recording = Recording(redis)
    maintainer = maintenance(recording)
    maintainer.run()
    assert redis.smembers(workers) == {b"rq:worker:alive"}
    assert not redis.exists(keys.RQ_WORKERS)
    assert max(recording.sizes) <= PART_SIZE
    redis.delete(workers)
    maintainer.leave()


@pytest.mark.parametrize("how", ["cancelled", "deleted"])
def test_a_job_ended_through_rq_in_a_dead_workers_hands_is_cancelled(
    redis: Redis, pipeline: Pipeline, how: str
) -> None:
    """It was taken for a lost one, and queued again in each round for ever."""
    request_id = submit(pipeline, NOW)
    execution = taken(pipeline, "dead", "x1")
    claim(pipeline, execution)
    if how == "cancelled":
        job(redis, request_id).cancel()
        redis.delete(keys.rq_registry("canceled", QUEUE))  # so that only `claimed` tells of it
    else:
        job(redis, request_id).delete()
    pipeline.run([Call(script("release"), keys.of_request(request_id), ("x1", 1))])
    redis.zadd(keys.claimed(QUEUE), {request_id: 1})
    maintainer = maintenance(pipeline)
    run_until(maintainer, lambda: state(redis, request_id) == "cancelled", 3)
    assert claimed(redis, QUEUE) == []
    assert not redis.exists(keys.rq_queue(QUEUE))
    maintainer.leave()


def test_maintenance_that_waits_for_redis_costs_no_lease(redis: Redis, redis_server: RedisServer) -> None:
    """Its rounds were the heartbeat's thread's."""
    stuck = CountingEngine(vocabulary=VOCABULARY, step_delay_s=2.0)
    blocked = Blocked(redis)
    with running_worker(redis_server.url, stuck, lease_ms=60_000) as worker:
        worker.maintenance.pipeline = blocked
        wait_until(blocked.asked.is_set)
        request_id = submit(pipeline_on(redis), NOW)
        wait_until(lambda: state(redis, request_id) == "in_progress")
        lease = redis.hget(keys.request(request_id), "lease_us")
        wait_until(lambda: redis.hget(keys.request(request_id), "lease_us") != lease)
        assert redis.hget(keys.request(request_id), "next") == b"1", "it was the heartbeat that renewed it"
        blocked.answers.set()
        pipeline_on(redis).run([Call(script("cancel"), keys.of_request(request_id), ("test",))])
        wait_until(lambda: claimed(redis, QUEUE) == [])
