"""What a worker exposes after requests of every kind: exact counts, scraped over HTTP."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from pydantic import SecretStr
from redis.exceptions import ConnectionError
from rq.suspension import resume

from tests.engines import CountingEngine
from tests.integration.test_worker import NOW, QUEUE, ended, result, slow_engine, submit_suspended
from tests.redis_servers import free_port
from tests.scrapes import Scrape, names_of, scrape_with
from tests.waiting import wait_until
from tests.workers import MODEL, VOCABULARY, running_worker, submit
from tests.workers import served as served_of
from tokenrelay.shared.metrics import queue_depths
from tokenrelay.shared.metrics.queue_depths import QueueDepths
from tokenrelay.shared.redis.batches import Pipeline
from tokenrelay.shared.redis.commands import Call
from tokenrelay.shared.redis.servers import Urls
from tokenrelay.shared.settings import WorkerSettings
from tokenrelay.shared.store.scripts import script
from tokenrelay.shared.wire import keys
from tokenrelay.worker import metrics
from tokenrelay.worker.core.figures import Figures
from tokenrelay.worker.engine.contract import CacheUse
from tokenrelay.worker.intake.intake import Intake
from tokenrelay.worker.maintenance.recovery import release
from tokenrelay.worker.metrics import Restarts, WorkerMetrics

if TYPE_CHECKING:
    from redis import Redis

    from tests.conftest import MakeRedisServer
    from tests.redis_servers import RedisServer
    from tokenrelay.shared.redis.commands import Batch, Reply


def test_counts_are_exact(redis_server: RedisServer, redis: Redis, pipeline: Pipeline) -> None:
    expired = submit(pipeline, NOW, deadline_s=0.05)
    wait_until(lambda: int(redis.hget(keys.request(expired), "deadline_us") or 0) < redis_us(redis))
    port = free_port()
    with running_worker(redis_server.url, slow_engine(slots=4), metrics_port=port):
        whole = [submit(pipeline, NOW, max_new_tokens=6) for _ in range(3)]
        cut = submit(pipeline, NOW, max_new_tokens=5000, deadline_s=0.5)
        for request_id in (expired, *whole, cut):
            wait_until(lambda request_id=request_id: ended(redis, request_id))  # type: ignore[misc]
        cancelled = submit(pipeline, NOW, max_new_tokens=5000)
        wait_until(lambda: redis.xlen(keys.stream(cancelled)) > 5)
        pipeline.run([Call(script("cancel"), keys.of_request(cancelled), ("test",))])
        scrape = wait_until(lambda: _settled(port))
    tokens = sum(result(redis, request_id).usage.completion_tokens for request_id in (*whole, cut, cancelled))
    ends = {("incomplete", "length"): 3, ("incomplete", "deadline"): 1, ("expired", "deadline"): 1}
    for (state_, reason), count in {**ends, ("cancelled", "cancelled"): 1, ("completed", "stop"): 0}.items():
        assert scrape.value(metrics.ENDS, state=state_, reason=reason) == count, (state_, reason)
    assert scrape.value(metrics.ENDS) == 6
    assert scrape.value(metrics.ATTEMPTS) == scrape.observations(metrics.QUEUE_WAIT) == 5
    assert scrape.value(metrics.TAKEOVERS) == scrape.value(metrics.RECOMPUTED_TOKENS) == 0
    assert scrape.value(metrics.PROMPT_TOKENS) == 5 * 3
    assert scrape.value(metrics.GENERATED_TOKENS) == tokens
    assert scrape.value(metrics.APPENDS) + scrape.value(metrics.COALESCED) == tokens
    assert scrape.observations(metrics.FIRST_TOKEN) == 5
    assert scrape.observations(metrics.REQUEST) == 5, "the expired one was never held"
    assert scrape.value(metrics.REFUSED_CLAIMS, reason="past") == 1
    assert scrape.value(metrics.SLOTS) == 4
    assert scrape.value(metrics.UNPUBLISHED) == scrape.value(metrics.FENCED_WRITES) == 0
    assert scrape.value(metrics.REDIS_ERRORS) == 0
    assert scrape.value(queue_depths.WORKERS, model=MODEL) == scrape.value(queue_depths.REDIS_UP) == 1
    of_the_real_engine = {metrics.KV_CAPACITY.name, metrics.KV_USED.name}
    assert scrape.names == names_of(metrics.METRICS) - of_the_real_engine, "what docs/metrics.md lists"
    # A step takes 20 ms.
    between = scrape.value(metrics.INTER_TOKEN, "_sum") / scrape.observations(metrics.INTER_TOKEN)
    assert 0.015 < between < 30
    assert 0.5 <= scrape.value(metrics.REQUEST, "_sum", state="incomplete") < 60


def _settled(port: int) -> Scrape | None:
    scrape = Scrape(port)
    return scrape if scrape.value(metrics.ENDS) == 6 and not scrape.value(metrics.IN_FLIGHT) else None


class Cached(CountingEngine):
    """Reports a KV cache that is a quarter full."""

    def cache_use(self) -> CacheUse:
        return CacheUse(640, 0.25)


def test_metrics_of_the_engine_and_the_supervisor(redis_server: RedisServer) -> None:
    with running_worker(redis_server.url, Cached(vocabulary=VOCABULARY)) as worker:
        told = WorkerMetrics(worker.threads, served_of(worker.threads.engine), worker.settings, Restarts(3, 1))
        found = {metric: samples for metric, samples in told.families()}
    assert found[metrics.RESTARTS] == [((MODEL,), 3)]
    assert found[metrics.STALLS] == [((MODEL,), 1)]
    assert found[metrics.KV_CAPACITY] == [((MODEL,), 640)]
    assert found[metrics.KV_USED] == [((MODEL,), 0.25)]


def test_a_takeover_is_counted_by_the_one_who_takes_over(
    redis_server: RedisServer, redis: Redis, pipeline: Pipeline
) -> None:
    first, second = free_port(), free_port()
    with running_worker(redis_server.url, slow_engine(), metrics_port=first, drain_timeout_s=0.0) as worker:
        request_id = submit(pipeline, NOW, max_new_tokens=40)
        wait_until(lambda: redis.xlen(keys.stream(request_id)) > 5)
        worker.stop()
    assert worker.threads.figures.handed_back.get() == 1
    emitted = redis.xlen(keys.stream(request_id)) - 2
    with running_worker(redis_server.url, slow_engine(), metrics_port=second):
        usage = result(redis, request_id).usage
        scrape = scrape_with(second, metrics.ENDS)
    assert scrape.value(metrics.ATTEMPTS) == scrape.value(metrics.TAKEOVERS) == 1
    assert scrape.value(metrics.RECOMPUTED_TOKENS) == usage.recomputed_tokens == 3 + emitted
    assert scrape.value(metrics.GENERATED_TOKENS) == 40 - emitted
    assert scrape.value(metrics.PROMPT_TOKENS) == 0, "counted at the first attempt"
    assert scrape.observations(metrics.FIRST_TOKEN) == scrape.observations(metrics.QUEUE_WAIT) == 0
    assert scrape.observations(metrics.REQUEST) == 1


def intake_over(pipeline: Pipeline, server: RedisServer) -> Intake:
    reader = served_of(CountingEngine(vocabulary=VOCABULARY)).reader
    settings = WorkerSettings(redis_url=SecretStr(server.url))
    return Intake(pipeline, reader, settings, "w", keys.queues(MODEL), Figures())


class LosesACleanUp(Pipeline):
    """Redis is away when the first batch that closes a job is sent."""

    lost = False

    def run(self, batch: Batch, *, atomic: bool = False) -> list[Reply]:
        if not self.lost and any(isinstance(item, Call) and item.script.name == "close" for item in batch):
            self.lost = True
            raise ConnectionError("away")
        return super().run(batch, atomic=atomic)


def test_a_claim_that_is_repeated_is_counted_once(redis_server: RedisServer, redis: Redis, pipeline: Pipeline) -> None:
    gone, past, _ = [submit(pipeline, NOW, deadline_s=deadline_s) for deadline_s in (60, 0.05, 60)]
    redis.delete(*keys.of_request(gone))
    wait_until(lambda: int(redis.hget(keys.request(past), "deadline_us") or 0) < redis_us(redis))
    intake = intake_over(LosesACleanUp(redis), redis_server)
    figures = intake.figures
    with pytest.raises(ConnectionError):
        intake.claim(8, idle=True)
    assert (figures.attempts, figures.ends.get("failed", "lost")) == (0, 0)
    (claimed,) = intake.claim(8, idle=True)
    assert (claimed.number, figures.attempts, figures.prompt_tokens) == (1, 1, 3)
    assert sum(figures.queue_wait_s.counts) == 1
    wait_until(lambda: not intake.claim(8, idle=True) and not intake.unclaimed)  # it waits a while for what is gone
    assert {labels: count for labels, count in figures.ends.items() if count} == {
        ("failed", "lost"): 1,
        ("expired", "deadline"): 1,
    }
    assert sum(count for _, count in figures.refused_claims.items()) == 1
    release(pipeline, [claimed.execution], crashed=False, retention_s=60)


class CancelsWhatExpires(Pipeline):
    """Somebody cancels a request right before it would expire."""

    def run(self, batch: Batch, *, atomic: bool = False) -> list[Reply]:
        for item in batch:
            if isinstance(item, Call) and item.script.name == "expire":
                super().run([Call(script("cancel"), item.keys, ("test",))])
        return super().run(batch, atomic=atomic)


def test_what_was_cancelled_isnt_counted_as_past_its_deadline(
    redis_server: RedisServer, redis: Redis, pipeline: Pipeline
) -> None:
    request_id = submit(pipeline, NOW, deadline_s=0.05)
    wait_until(lambda: int(redis.hget(keys.request(request_id), "deadline_us") or 0) < redis_us(redis))
    intake = intake_over(CancelsWhatExpires(redis), redis_server)
    assert intake.claim(8, idle=True) == []
    assert [labels for labels, count in intake.figures.ends.items() if count] == [("cancelled", "cancelled")]


def test_scrapes_of_one_second_look_at_redis_once(redis_server: RedisServer, redis: Redis) -> None:
    depths = QueueDepths(Urls(redis_server.url, redis_server.url), MODEL)
    before = connections(redis)
    first = depths.families()
    assert connections(redis) == before + 1
    assert depths.families() is first
    wait_until(lambda: depths.families() is not first)


def connections(redis: Redis) -> int:
    return int(redis.info("stats")["total_connections_received"])


def redis_us(redis: Redis) -> int:
    seconds, microseconds = redis.time()
    return int(seconds) * 1_000_000 + int(microseconds)


def test_queues_and_fences(redis_server: RedisServer, redis: Redis, pipeline: Pipeline) -> None:
    port = free_port()
    waiting = submit_suspended(redis, pipeline)
    with running_worker(redis_server.url, slow_engine(), metrics_port=port):
        wait_until(lambda: Scrape(port).value(queue_depths.WORKERS) == 1)
        assert _depths(port) == (1, 0)
        resume(redis)
        wait_until(lambda: _depths(port) == (0, 1))
        pipeline.run([Call(script("cancel"), keys.of_request(waiting), ("test",))])
        wait_until(lambda: _depths(port) == (0, 0))
        # And a request that another attempt takes from this one.
        fenced = submit(pipeline, NOW, max_new_tokens=5000)
        wait_until(lambda: redis.xlen(keys.stream(fenced)) > 3)
        redis.hset(keys.request(fenced), "fence", "2:another")
        wait_until(lambda: Scrape(port).value(metrics.FENCED_WRITES) == 1)
        assert Scrape(port).value(metrics.ENDS) == 1, "the cancelled one: the fenced one goes on elsewhere"
        pipeline.run([Call(script("cancel"), keys.of_request(fenced), ("test",))])


def _depths(port: int) -> tuple[float, float]:
    scrape = Scrape(port)
    return scrape.value(queue_depths.WAITING, queue=QUEUE), scrape.value(queue_depths.CLAIMED, queue=QUEUE)


def test_without_redis_the_workers_own_numbers_are_still_told(make_redis_server: MakeRedisServer) -> None:
    server = make_redis_server()
    port = free_port()
    with running_worker(server.url, metrics_port=port):
        wait_until(lambda: Scrape(port).value(queue_depths.REDIS_UP) == 1)
        server.kill()
        wait_until(lambda: Scrape(port).value(queue_depths.REDIS_UP) == 0)
        scrape = Scrape(port)
        assert scrape.samples(queue_depths.REDIS_UP.name) == [0]
        assert scrape.samples(queue_depths.WAITING.name) == []
        assert scrape.value(metrics.SLOTS) == 8
        wait_until(lambda: Scrape(port).value(metrics.REDIS_ERRORS) > 0)
        server.start()
        wait_until(lambda: Scrape(port).value(queue_depths.REDIS_UP) == 1)
