"""A failover that loses the end of a stream, and not that its job was closed: the worker that wrote it still has it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
from rq.suspension import resume, suspend

from tests.engines import CountingEngine
from tests.integration.test_worker import QUEUE, job, result, state, words
from tests.two_planes import streams_of
from tests.waiting import wait_until
from tests.workers import VOCABULARY, running_worker, submit
from tokenrelay.shared.wire import keys

if TYPE_CHECKING:
    from redis import Redis

    from tests.redis_servers import RedisServer
    from tokenrelay.shared.redis.batches import Pipeline


@dataclass(frozen=True, slots=True)
class Replica:
    """What a replica has of a request that missed everything from now on."""

    redis: Redis
    dumps: dict[str, bytes]

    def promote(self) -> None:
        with self.redis.pipeline() as restores:  # at one moment: the worker goes on meanwhile
            for key, dump in self.dumps.items():
                restores.restore(key, 60_000, dump, replace=True)
            restores.execute()


def replica(redis: Redis, request_id: str) -> Replica:
    redis = streams_of(redis)
    with redis.pipeline() as dumps:
        for key in keys.of_request(request_id):
            dumps.dump(key)
        return Replica(redis, dict(zip(keys.of_request(request_id), dumps.execute(), strict=True)))


@pytest.mark.parametrize("stops", [False, True], ids=["goes on", "stops"])
def test_the_end_of_a_stream_that_a_failover_lost_is_written_again(
    redis: Redis, redis_server: RedisServer, pipeline: Pipeline, stops: bool
) -> None:
    """Its job was closed on the new primary, so nobody else would look at it before its deadline."""
    engine = CountingEngine(vocabulary=VOCABULARY, step_delay_s=0.02)
    with running_worker(redis_server.url, engine) as worker:
        request_id = submit(pipeline, datetime.now(UTC), seed=5, max_new_tokens=40)
        wait_until(lambda: redis.xlen(keys.stream(request_id)) > 10)
        missed = replica(redis, request_id)
        wait_until(lambda: job(redis, request_id).get_status() == "finished")
        missed.promote()
        assert state(redis, request_id) == "in_progress"
        if not stops:
            wait_until(lambda: state(redis, request_id) == "incomplete")
    ended = result(redis, request_id)
    assert (ended.text, ended.usage.completion_tokens) == (words(5, 40), 40)
    assert worker.threads.status.finished == 1
    assert job(redis, request_id).get_status() == "finished"


def test_an_end_that_redis_has_is_written_once(redis: Redis, redis_server: RedisServer, pipeline: Pipeline) -> None:
    with running_worker(redis_server.url, CountingEngine(vocabulary=VOCABULARY)) as worker:
        request_id = submit(pipeline, datetime.now(UTC), seed=5, max_new_tokens=4)
        wait_until(lambda: job(redis, request_id).get_status() == "finished")
        length = redis.xlen(keys.stream(request_id))
        wait_until(lambda: worker.threads.loop.publisher.closings.unconfirmed)
    assert redis.xlen(keys.stream(request_id)) == length


def test_a_failover_that_lost_the_claim_leaves_the_job_to_others(
    redis: Redis, redis_server: RedisServer, pipeline: Pipeline
) -> None:
    """The end is no longer this worker's to write, and RQ isn't told of it: the next claim goes on."""
    engine = CountingEngine(vocabulary=VOCABULARY, step_delay_s=0.02)
    with running_worker(redis_server.url, engine, slots=1) as worker:
        request_id = submit(pipeline, datetime.now(UTC), seed=5, max_new_tokens=20)
        wait_until(lambda: redis.xlen(keys.stream(request_id)) > 5)
        missed = replica(redis, request_id)
        wait_until(lambda: job(redis, request_id).get_status() == "finished")
        wait_until(lambda: worker.threads.loop.publisher.closings.unconfirmed)
        suspend(redis, ttl=60)
        missed.promote()
        redis.hset(keys.request(request_id), "fence", "")
        redis.hset(keys.rq_job(request_id), "status", "queued")
        redis.zrem(keys.rq_registry("finished", QUEUE), request_id)
        redis.rpush(keys.rq_queue(QUEUE), request_id)
        wait_until(lambda: not worker.threads.loop.publisher.closings.unconfirmed)
        assert redis.lrange(keys.rq_queue(QUEUE), 0, -1) == [request_id.encode()]
        resume(redis)
        ended = result(redis, request_id)
    assert (ended.text, ended.usage.completion_tokens) == (words(5, 20), 20)


def test_an_overdue_request_whose_stream_is_of_another_type_fails_alone(
    redis: Redis, redis_server: RedisServer, pipeline: Pipeline
) -> None:
    """Intake asked for it again and again, and its neighbours' claims ran out."""
    suspend(redis, ttl=60)
    broken, other = (submit(pipeline, datetime.now(UTC), seed=5, max_new_tokens=4) for _ in range(2))
    redis.delete(keys.stream(broken))
    redis.set(keys.stream(broken), "x", ex=60)
    redis.hset(keys.request(broken), "deadline_us", 1)
    with running_worker(redis_server.url, CountingEngine(vocabulary=VOCABULARY)):
        resume(redis)
        assert result(redis, other).text == words(5, 4)
        wait_until(lambda: job(redis, broken).get_status() == "failed")
