"""A job never comes to a worker before its request, whichever scripts the server knows already."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from tests.integration.test_fleet import maintenance
from tests.integration.test_metrics import intake_over
from tests.waiting import wait_until
from tests.workers import MODEL, running_worker, submit
from tokenrelay.producer import Producer
from tokenrelay.shared.store.scripts import script
from tokenrelay.shared.wire import keys
from tokenrelay.shared.wire.entries import State
from tokenrelay.worker.intake.taking import MOST_MISSING

if TYPE_CHECKING:
    import pytest
    from redis import Redis

    from tests.redis_servers import RedisServer
    from tokenrelay.shared.redis.batches import Pipeline

NOW = datetime.now(UTC)


def test_a_server_that_lacks_the_first_script_of_two(redis_server: RedisServer, redis: Redis) -> None:
    """As when a producer of another release has loaded its own, or after a failover."""
    with running_worker(redis_server.url), Producer(url=redis_server.url) as producer:
        for _ in range(10):
            redis.script_flush()
            redis.script_load(script("enqueue").source(modern=True))
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
        wait_until(lambda: worker.threads.intake.unclaimed)
        redis.restore(keys.stream(late), 60_000, stream)  # type: ignore[arg-type]
        redis.restore(keys.request(late), 60_000, body)  # type: ignore[arg-type]
        with Producer(url=redis_server.url) as producer:
            assert producer.get(late).result(timeout_s=30).state is State.INCOMPLETE
        wait_until(lambda: redis.hget(keys.rq_job(never), "status") == b"failed")
        wait_until(lambda: not worker.threads.intake.unclaimed)


def test_maintenance_leaves_a_job_that_waits_for_its_request(
    redis_server: RedisServer, redis: Redis, pipeline: Pipeline
) -> None:
    """Its first round closed it, a few milliseconds after it was taken."""
    late = submit(pipeline, NOW)
    body = redis.dump(keys.request(late))
    redis.delete(keys.request(late))
    intake, maintainer = intake_over(pipeline, redis_server), maintenance(pipeline)
    assert intake.claim(8, idle=True) == []
    maintainer.run()
    assert redis.hget(keys.rq_job(late), "status") == b"started"
    redis.restore(keys.request(late), 60_000, body)  # type: ignore[arg-type]
    claimed: list[str] = []

    def is_claimed() -> bool:
        claimed.extend(each.execution.job_id for each in intake.claim(8, idle=True))
        return bool(claimed)

    wait_until(is_claimed)
    assert claimed == [late]


def statuses(redis: Redis, ids: list[str]) -> set[bytes | None]:
    """What RQ's jobs say; a job whose request is gone is kept for a second."""
    return {redis.hget(keys.rq_job(request_id), "status") for request_id in ids}  # type: ignore[misc]


def test_jobs_without_a_request_keep_no_request_waiting(
    redis_server: RedisServer, redis: Redis, pipeline: Pipeline, caplog: pytest.LogCaptureFixture
) -> None:
    """Each waits a second for its request, beside the slots: in the two slots it would be a minute, for all of them."""
    gone = [submit(pipeline, NOW) for _ in range(100)]
    redis.delete(*(key for request_id in gone for key in keys.of_request(request_id)))
    good = submit(pipeline, NOW)
    with running_worker(redis_server.url, slots=2), Producer(url=redis_server.url) as producer:
        assert producer.get(good).result(timeout_s=25).state is State.INCOMPLETE
        wait_until(lambda: statuses(redis, gone) <= {b"failed", None})
    assert "have no request in Redis, such as r" in caplog.text
    assert "need the same TOKENRELAY_STREAMS_URL" in caplog.text


def test_jobs_that_wait_for_their_requests_are_so_many_at_a_time(
    redis_server: RedisServer, redis: Redis, pipeline: Pipeline
) -> None:
    gone = [submit(pipeline, NOW) for _ in range(MOST_MISSING + 40)]
    redis.delete(*(key for request_id in gone for key in keys.of_request(request_id)))
    intake = intake_over(pipeline, redis_server)
    most = 0

    def over() -> bool:
        nonlocal most
        assert intake.claim(8, idle=True) == []
        most = max(most, len(intake.taken))
        return not intake.taken

    wait_until(over)
    assert most == MOST_MISSING
    assert statuses(redis, gone) <= {b"failed", None}
