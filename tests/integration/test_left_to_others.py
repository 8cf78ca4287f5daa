"""Queued requests that a worker can't take now, or not at all: they wait, and nobody else does."""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
from rq.suspension import resume, suspend

from tests.engines import CountingEngine
from tests.fleet import Meter
from tests.integration.test_worker import QUEUE, refused, result, state, words
from tests.waiting import wait_until
from tests.workers import VOCABULARY, running_worker, submit
from tokenrelay.shared.redis.commands import Call
from tokenrelay.shared.store.jobs import Execution, Note, Take, requeue_call, take_call
from tokenrelay.shared.store.scripts import script
from tokenrelay.shared.wire import keys
from tokenrelay.worker.intake.claiming import MOST_REFUSED_MS, REFUSED_MS

if TYPE_CHECKING:
    from redis import Redis

    from tests.redis_servers import RedisServer
    from tokenrelay.shared.redis.batches import Pipeline
    from tokenrelay.worker.engine.contract import EngineRequest
    from tokenrelay.worker.worker import Worker

NOW = datetime.now(UTC)
WORKERS = 4
CRASHED_FROM = 1_000
"""Seeds of requests that took workers down twice."""


class Watched(CountingEngine):
    """Notes in `together` what ran beside a request that has to run alone."""

    def __init__(self, together: list[list[int]]) -> None:
        super().__init__(vocabulary=VOCABULARY, step_delay_s=0.01)
        self._together = together
        self._seeds: dict[str, int] = {}
        self._lock = threading.Lock()

    def add(self, request: EngineRequest) -> None:
        with self._lock:
            self._seeds[request.engine_id] = request.sampling.seed
            running = list(self._seeds.values())
        if len(running) > 1 and max(running) >= CRASHED_FROM:
            self._together.append(running)
        super().add(request)

    def cancel(self, engine_id: str) -> None:
        with self._lock:
            self._seeds.pop(engine_id, None)
        super().cancel(engine_id)


def crashed(redis: Redis, pipeline: Pipeline, number: int) -> list[str]:
    """Requests at the front of the queue that took workers down twice."""
    suspend(redis, ttl=60)
    ids = [submit(pipeline, NOW, seed=CRASHED_FROM + index, max_new_tokens=5) for index in range(number)]
    for request_id in ids:
        redis.hset(keys.request(request_id), "crashes", 2)
        redis.lrem(keys.rq_queue(QUEUE), 1, request_id)
        redis.lpush(keys.rq_queue(QUEUE), request_id)
    resume(redis)
    return ids


def cancel(pipeline: Pipeline, request_id: str) -> None:
    pipeline.run([Call(script("cancel"), keys.of_request(request_id), ("test",))])


def long_requests(workers: list[Worker], pipeline: Pipeline) -> list[str]:
    """A long request of each worker. On a busy machine one of them takes several before the others take any."""
    kept: dict[str, str] = {}
    while len(kept) < len(workers):
        request_id = submit(pipeline, NOW, max_new_tokens=9_999)
        holder = wait_until(lambda: holders(workers, request_id))[0]  # noqa: B023  called at once
        if kept.setdefault(holder.name, request_id) != request_id:
            cancel(pipeline, request_id)
            wait_until(lambda: not holders(workers, request_id))  # noqa: B023  called at once
    return list(kept.values())


def holders(workers: list[Worker], request_id: str) -> list[Worker]:
    return [worker for worker in workers if request_id in worker.threads.status.held]


@pytest.mark.parametrize("number", [1, 5])
def test_what_must_run_alone_keeps_nobody_waiting(
    redis_server: RedisServer, redis: Redis, pipeline: Pipeline, number: int
) -> None:
    """Every worker is busy with an answer that doesn't end; it runs, alone, as soon as one is idle."""
    together: list[list[int]] = []
    with ExitStack() as stack:
        workers = [
            stack.enter_context(running_worker(redis_server.url, Watched(together), slots=16)) for _ in range(WORKERS)
        ]
        long = long_requests(workers, pipeline)
        lonely = crashed(redis, pipeline, number)
        short = {seed: submit(pipeline, NOW, seed=seed, max_new_tokens=2) for seed in range(50)}
        for seed, request_id in short.items():
            assert result(redis, request_id).text == words(seed, 2)
        wait_until(lambda: all(redis.hexists(keys.rq_job(request_id), "alone") for request_id in lonely))
        noted = [redis.hget(keys.rq_job(request_id), "enqueued_at") for request_id in lonely]
        late = [submit(pipeline, NOW, seed=seed, max_new_tokens=2) for seed in range(20)]
        for request_id in late:
            result(redis, request_id)
        assert [redis.hget(keys.rq_job(request_id), "enqueued_at") for request_id in lonely] == noted, (
            "taken and put back again and again"
        )
        assert {state(redis, request_id) for request_id in lonely} == {"queued"}
        assert {state(redis, request_id) for request_id in long} == {"in_progress"}
        for request_id in workers[0].threads.status.held:
            cancel(pipeline, request_id)
        for index, request_id in enumerate(lonely):
            assert result(redis, request_id).text == words(CRASHED_FROM + index, 5)
            assert not redis.hexists(keys.rq_job(request_id), "alone")
        for request_id in long:
            cancel(pipeline, request_id)
    assert together == [], "it ran beside another"


def test_what_waited_long_to_run_alone_is_made_room_for_by_one_worker(
    redis_server: RedisServer, redis: Redis, pipeline: Pipeline
) -> None:
    """A fleet that is never idle would let it wait until its deadline."""
    together: list[list[int]] = []
    with ExitStack() as stack:
        workers = [stack.enter_context(running_worker(redis_server.url, Watched(together), slots=8)) for _ in "ab"]
        long = long_requests(workers, pipeline)
        first, second = (keys.rq_job(request_id) for request_id in crashed(redis, pipeline, 2))
        wait_until(lambda: redis.hexists(first, "alone") and redis.hexists(second, "alone"))
        redis.hset(first, "alone", 1)  # noted long ago
        redis.hset(second, "alone", 1)
        short = {seed: submit(pipeline, NOW, seed=seed, max_new_tokens=2) for seed in range(20)}
        for seed, request_id in short.items():
            assert result(redis, request_id).text == words(seed, 2)
        (reserved,) = [name for job in (first, second) if (name := redis.hget(job, "alone_for"))]
        (making_room,) = [worker for worker in workers if worker.name.encode() == reserved]
        wait_until(lambda: making_room.threads.status.held <= set(long))
        for request_id in making_room.threads.status.held:
            cancel(pipeline, request_id)
        wait_until(lambda: not redis.hexists(first, "alone") and not redis.hexists(second, "alone"))
        for request_id in long:
            cancel(pipeline, request_id)
        wait_until(lambda: not any(worker.threads.status.held for worker in workers))
    assert together == [], "it ran beside another"


def test_another_models_request_keeps_nobody_waiting(
    redis_server: RedisServer, redis: Redis, pipeline: Pipeline
) -> None:
    other = submit(pipeline, NOW)
    redis.hset(keys.request(other), "fingerprint", "older weights")
    began = time.monotonic()
    with running_worker(redis_server.url) as worker:
        wait_until(lambda: refused(worker))
        for seed in range(20):
            assert result(redis, submit(pipeline, NOW, seed=seed, max_new_tokens=2)).text == words(seed, 2)
        # Once a pause, not once a look: after each of its answers a worker looks for more.
        assert refused(worker) <= 2 + (time.monotonic() - began) * 1000 / REFUSED_MS
        assert state(redis, other) == "queued"
        with running_worker(redis_server.url, fingerprint="older weights"):
            assert result(redis, other).text == words(7, 8)


def test_a_mixed_fleet_shares_a_queue(redis_server: RedisServer, redis: Redis, pipeline: Pipeline) -> None:
    """Requests of both weights stand in one queue, in turns; none waits for the pause of the workers it isn't for."""
    ids = {seed: submit(pipeline, NOW, seed=seed, max_new_tokens=4) for seed in range(40)}
    for seed, request_id in ids.items():
        redis.hset(keys.request(request_id), "fingerprint", f"weights {seed % 2}")
    with ExitStack() as stack:
        workers: list[Worker] = [
            stack.enter_context(running_worker(redis_server.url, fingerprint=f"weights {number}", slots=2))
            for number in range(2)
        ]
        for seed, request_id in ids.items():
            assert result(redis, request_id).text == words(seed, 4)
        assert all(refused(worker) <= 40 for worker in workers)
    assert redis.llen(keys.rq_queue(QUEUE)) == 0


def others_requests(redis: Redis, pipeline: Pipeline, number: int) -> list[str]:
    """Queued requests that another kind of worker began."""
    ids = [submit(pipeline, NOW) for _ in range(number)]
    for request_id in ids:
        redis.hset(keys.request(request_id), "fingerprint", "older weights")
    return ids


def test_what_is_refused_in_one_round_is_logged_in_one_line(
    redis_server: RedisServer, redis: Redis, pipeline: Pipeline, caplog: pytest.LogCaptureFixture
) -> None:
    ids = others_requests(redis, pipeline, 8)
    with running_worker(redis_server.url) as worker:
        wait_until(lambda: refused(worker) == 8)
    (line,) = [record.getMessage() for record in caplog.records if "need" in record.getMessage()]
    assert line.startswith(f"8 requests need another worker, such as {ids[0]}: ")


def test_what_is_refused_again_is_left_to_others_for_longer(redis: Redis, pipeline: Pipeline) -> None:
    """Twice as long each time, up to a minute; to workers of that kind alone."""
    request_id = submit(pipeline, NOW)
    job, note = keys.rq_job(request_id), Note("us", REFUSED_MS, MOST_REFUSED_MS)
    waits = []
    for number in range(6):
        (taken,) = pipeline.run([take_call(Take("w", (QUEUE,), (f"x{number}",), 60, kind="us"))])
        assert [job_id for _, job_id, *_ in taken] == [request_id.encode()]
        pipeline.run([requeue_call(Execution(request_id, QUEUE, "w", f"x{number}"), "back", note)])
        now: Any = redis.time()
        until: Any = redis.hget(job, "refused:us")
        waits.append(round(int(until) / 1000 - now[0], -1) if number else round(int(until) / 1000 - now[0]))
        assert pipeline.run([take_call(Take("w", (QUEUE,), ("y",), 60, kind="us"))]) == [[]]
        redis.hdel(job, "refused:us")  # its time is over
    assert waits[0] in (4, 5)
    assert waits[1:] == [10, 20, 40, 60, 60]
    redis.hset(job, "refused:us", until)
    (taken,) = pipeline.run([take_call(Take("w", (QUEUE,), ("z",), 60, kind="them"))])
    assert [job_id for _, job_id, *_ in taken] == [request_id.encode()]
    redis.delete(keys.claimed(QUEUE))


def test_a_look_past_hundreds_of_others_requests_is_one_command_each(redis: Redis, pipeline: Pipeline) -> None:
    """Five looks a second meet them, of every idle worker that they aren't for; they keep their order."""
    ids = others_requests(redis, pipeline, 200)
    until = int(time.time() * 1000) + 30_000
    for request_id in ids:
        redis.hset(keys.rq_job(request_id), "refused:us", until)
    look = take_call(Take("w", (QUEUE,), tuple(f"x{number}" for number in range(8)), 60, kind="us"))
    pipeline.run([look])
    meter = Meter(redis)
    before = meter.read()
    assert pipeline.run([look]) == [[]]
    assert sum(meter.since(before).values()) <= 1.3 * len(ids)
    assert redis.lrange(keys.rq_queue(QUEUE), 0, -1) == [request_id.encode() for request_id in ids]


def test_what_runs_alone_leaves_those_behind_it_where_they_stand(redis: Redis, pipeline: Pipeline) -> None:
    lonely, *rest = [submit(pipeline, NOW) for _ in range(6)]
    redis.hset(keys.rq_job(lonely), "alone", 1)
    (taken,) = pipeline.run([take_call(Take("w", (QUEUE,), tuple("abcd"), 60))])
    assert [job_id.decode() for _, job_id, *_ in taken] == [lonely]
    assert redis.lrange(keys.rq_queue(QUEUE), 0, -1) == [job_id.encode() for job_id in rest]
    redis.delete(keys.claimed(QUEUE))


@pytest.mark.parametrize("until", [b"1e30", b"9" * 5000, b"nan", b"\xff", b"4102444800000"])
def test_a_note_that_holds_for_longer_than_any_is_none(redis: Redis, pipeline: Pipeline, until: bytes) -> None:
    """Its job would stay in the queue: a failover to a host whose clock is behind leaves such notes, too."""
    request_id = submit(pipeline, NOW)
    redis.hset(keys.rq_job(request_id), "refused:us", until)
    (taken,) = pipeline.run([take_call(Take("w", (QUEUE,), ("x1",), 60, kind="us"))])
    assert [job_id for _, job_id, *_ in taken] == [request_id.encode()]
    redis.delete(keys.claimed(QUEUE))
