"""A job never comes to a worker before its request, whichever scripts the server knows already."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from tests.waiting import wait_until
from tests.workers import MODEL, running_worker, submit
from tokenrelay.producer import Producer
from tokenrelay.shared import keys
from tokenrelay.shared.entries import State
from tokenrelay.shared.store.scripts import source

if TYPE_CHECKING:
    from redis import Redis

    from tests.redis_servers import RedisServer
    from tokenrelay.shared.commands import Pipeline

NOW = datetime.now(UTC)


def test_a_server_that_lacks_the_first_script_of_two(redis_server: RedisServer, redis: Redis) -> None:
    """As when a producer of another release has loaded its own, or after a failover."""
    with running_worker(redis_server.url), Producer(url=redis_server.url) as producer:
        for _ in range(10):
            redis.script_flush()
            redis.script_load(source("enqueue", modern=True))
            generation = producer.submit("w1", model=MODEL, max_new_tokens=2, seed=1)
            assert generation.result(timeout_s=30).state is State.INCOMPLETE


def test_a_job_is_kept_until_its_request_comes(redis_server: RedisServer, redis: Redis, pipeline: Pipeline) -> None:
    """An earlier release's producer may enqueue first; its request follows a few milliseconds later."""
    with running_worker(redis_server.url) as worker:
        suspended = b"1"
        redis.set(keys.RQ_SUSPENDED, suspended, ex=60)
        late, never = submit(pipeline, NOW), submit(pipeline, NOW)
        body, stream = redis.dump(keys.request(late)), redis.dump(keys.stream(late))
        redis.delete(*keys.of_request(late), *keys.of_request(never))
        redis.delete(keys.RQ_SUSPENDED)
        wait_until(lambda: worker.loop.intake.unclaimed)
        redis.restore(keys.stream(late), 60_000, stream)  # type: ignore[arg-type]
        redis.restore(keys.request(late), 60_000, body)  # type: ignore[arg-type]
        with Producer(url=redis_server.url) as producer:
            assert producer.get(late).result(timeout_s=30).state is State.INCOMPLETE
        wait_until(lambda: redis.hget(keys.rq_job(never), "status") == b"failed")
        wait_until(lambda: not worker.loop.intake.unclaimed)
