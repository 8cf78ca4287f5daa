"""What others do to RQ's keys of our jobs, and errors that pass: nothing is lost, and RQ comes to say the truth."""

from __future__ import annotations

import signal
import threading
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
from rq.job_lifecycle import record_job_failure
from rq.registry import FailedJobRegistry, StartedJobRegistry
from rq.serializers import JSONSerializer

from tests.engines import CountingEngine
from tests.integration.scripts.queue_plane import claimed, requeue, run
from tests.integration.test_worker import entries, job, refused, result, state
from tests.waiting import wait_until
from tests.workers import MODEL, VOCABULARY, running_worker, submit
from tokenrelay.shared.options import WIRE
from tokenrelay.shared.redis.commands import Call
from tokenrelay.shared.settings import WorkerSettings
from tokenrelay.shared.store.jobs import Execution, Take, keep_call, take_call
from tokenrelay.shared.store.scripts import script
from tokenrelay.shared.wire import keys
from tokenrelay.shared.wire.entries import State, Token, text
from tokenrelay.worker.maintenance.recovery import release, release_worker
from tokenrelay.worker.supervisor.supervisor import Supervisor

if TYPE_CHECKING:
    from redis import Redis

    from tests.redis_servers import RedisServer
    from tokenrelay.shared.redis.batches import Pipeline

NOW = datetime.now(UTC)
QUEUE = keys.queue(MODEL, "default")
WIP = keys.rq_registry("wip", QUEUE)


def taken(pipeline: Pipeline, worker: str, execution_id: str) -> Execution:
    (reply,) = pipeline.run([take_call(Take(worker, (QUEUE,), (execution_id,), 60))])
    ((_, job_id, execution, *_),) = reply
    return Execution(job_id.decode(), QUEUE, worker, execution.decode())


def claim(pipeline: Pipeline, execution: Execution, lease_ms: int = 60_000) -> str:
    model = (execution.worker, MODEL, "counting-1", 3, 500, "7", 3, "[1, 2, 3]")
    arguments = (execution.execution_id, lease_ms, *model)
    (reply,) = pipeline.run([Call(script("claim"), keys.of_request(execution.job_id), arguments)])
    assert reply[0] == b"OK", reply
    return str(reply[1].decode())


def clean_up(redis: Redis) -> None:
    """RQ's own, as `rq info` runs it, once the leases that RQ knows of are over."""
    members: Any = redis.zrange(WIP, 0, -1)
    for member in members:
        redis.zadd(WIP, {text(member): 1}, xx=True)
    StartedJobRegistry(QUEUE, connection=redis, serializer=JSONSerializer).cleanup()


def test_a_hand_over_leaves_nothing_of_the_dead_execution(redis: Redis, pipeline: Pipeline) -> None:
    request_id = submit(pipeline, NOW)
    taken(pipeline, "dead", "x1")
    requeued = Execution(request_id, QUEUE)  # as maintenance does it: it doesn't know whose it was
    requeue(pipeline, requeued)
    assert redis.zrange(WIP, 0, -1) == []
    assert redis.exists(keys.rq_executions(request_id), keys.rq_execution(request_id, "x1")) == 0


def test_a_job_that_rqs_clean_up_fails_on_its_way_to_the_queue_is_not_lost(redis: Redis, pipeline: Pipeline) -> None:
    """The clean-up read `started`, the job was handed back, the clean-up wrote `failed`."""
    request_id = submit(pipeline, NOW)
    redis.hset(keys.rq_job(request_id), "status", "failed")
    with running_worker(redis_server_url(redis)):
        assert result(redis, request_id).state is State.INCOMPLETE
        wait_until(lambda: job(redis, request_id).get_status() == "finished")


def test_a_job_that_rqs_clean_up_fails_when_it_has_ended_is_set_right(redis: Redis, pipeline: Pipeline) -> None:
    """The clean-up read `started`, the job ended, the clean-up wrote `failed`."""
    request_id = submit(pipeline, NOW)
    with running_worker(redis_server_url(redis)):
        wait_until(lambda: job(redis, request_id).get_status() == "finished")
        with redis.pipeline() as late:
            record_job_failure(job(redis, request_id), "abandoned", late)
            late.execute()
        assert job(redis, request_id).get_status() == "failed"
        wait_until(lambda: job(redis, request_id).get_status() == "finished")
    assert redis.zscore(keys.rq_registry("failed", QUEUE), request_id) is None
    assert redis.zscore(keys.rq_registry("finished", QUEUE), request_id) is not None


def test_a_job_that_cant_be_closed_is_given_up_and_set_right_once_it_can(
    redis: Redis, pipeline: Pipeline, caplog: pytest.LogCaptureFixture
) -> None:
    """Three tries 0.1 s apart and one line; then maintenance tries, more slowly each time, also without a word."""
    request_id = submit(pipeline, NOW)
    redis.set(keys.rq_registry("finished", QUEUE), "somebody else's", ex=60)
    with running_worker(redis_server_url(redis)) as worker:
        wait_until(lambda: state(redis, request_id) == "incomplete")
        wait_until(lambda: not worker.threads.loop.publisher.behind)
        wait_until(lambda: [record for record in caplog.records if "can't be repaired" in record.message])
        assert claimed(redis, QUEUE) == [request_id]
        redis.delete(keys.rq_registry("finished", QUEUE))
        wait_until(lambda: job(redis, request_id).get_status() == "finished")
        wait_until(lambda: claimed(redis, QUEUE) == [])
    told = [record.message for record in caplog.records if request_id in record.message and record.levelname != "INFO"]
    assert 1 <= len(told) <= 2, told


@pytest.mark.parametrize("kind", ["job", "executions", "execution", "results", "worker"])
def test_a_key_of_another_type_keeps_no_worker_from_stopping(redis: Redis, pipeline: Pipeline, kind: str) -> None:
    """Its close was tried ten times a second for ever, and a SIGTERM had to wait for its drain timeout."""
    slow = CountingEngine(vocabulary=VOCABULARY, step_delay_s=0.05)
    with running_worker(redis_server_url(redis), slow, drain_timeout_s=600) as worker:
        request_id = submit(pipeline, NOW, max_new_tokens=20)
        wait_until(lambda: redis.xlen(keys.stream(request_id)) > 4)
        _, _, execution_id = text(redis.hget(keys.request(request_id), "fence") or b"").partition(":")
        key = {
            "job": keys.rq_job(request_id),
            "executions": keys.rq_executions(request_id),
            "execution": keys.rq_execution(request_id, execution_id),
            "results": keys.rq_results(request_id),
            "worker": keys.rq_worker(worker.name),
        }[kind]
        if kind == "worker":
            redis.set(keys.rq_registry("finished", QUEUE), "somebody else's", ex=60)
        else:
            redis.delete(key)
            redis.set(key, "somebody else's", ex=60)
        assert result(redis, request_id).state is State.INCOMPLETE
        wait_until(lambda: not worker.threads.loop.publisher.behind)
    redis.delete(keys.rq_registry("finished", QUEUE), keys.claimed(QUEUE))


def redis_server_url(redis: Redis) -> str:
    options = redis.connection_pool.connection_kwargs
    return f"redis://{options['host']}:{options['port']}/0"


def test_a_running_job_that_rqs_clean_up_fails_runs_on(redis: Redis, pipeline: Pipeline) -> None:
    slow = CountingEngine(vocabulary=VOCABULARY, step_delay_s=0.02, slots=4)
    with running_worker(redis_server_url(redis), slow):
        request_id = submit(pipeline, NOW, max_new_tokens=5000)
        wait_until(lambda: redis.xlen(keys.stream(request_id)) > 4)
        before_ms = redis.pttl(keys.rq_job(request_id))
        clean_up(redis)
        assert job(redis, request_id).get_status() == "failed"
        wait_until(lambda: job(redis, request_id).get_status() == "started")
        assert redis.pttl(keys.rq_job(request_id)) > before_ms - 30_000
        assert FailedJobRegistry(QUEUE, connection=redis, serializer=JSONSerializer).get_job_ids() == []
        assert redis.zcard(WIP) == 1
        assert state(redis, request_id) == "in_progress"
        pipeline.run([Call(script("cancel"), keys.of_request(request_id), ("test",))])
        wait_until(lambda: job(redis, request_id).get_status() == "canceled")


def test_a_request_without_a_token_ends_at_its_deadline(redis: Redis, pipeline: Pipeline) -> None:
    """No token, so no append that would be told; nobody reads; the slot must be free all the same."""
    stuck = CountingEngine(vocabulary=VOCABULARY, step_delay_s=3.0, slots=1)
    with running_worker(redis_server_url(redis), stuck, slots=1) as worker:
        request_id = submit(pipeline, NOW, deadline_s=0.5)
        wait_until(lambda: worker.threads.status.held)
        wait_until(lambda: not worker.threads.status.held, timeout_s=4)
        got = result(redis, request_id)
    assert (got.state, got.finish_reason) == (State.EXPIRED, "deadline")
    assert [entry for entry in entries(redis, request_id) if isinstance(entry, Token)] == []


def test_a_handed_over_request_past_its_deadline_is_told_to_rq_as_it_ended(redis: Redis, pipeline: Pipeline) -> None:
    request_id = submit(pipeline, NOW, deadline_s=0.3)
    execution = taken(pipeline, "first", "x1")
    fence = claim(pipeline, execution)
    pipeline.run([Call(script("append"), keys.of_request(request_id), (fence, 1, 60_000, "w4", 4))])
    release(pipeline, [execution], crashed=False, retention_s=60)
    time.sleep(0.35)
    with running_worker(redis_server_url(redis)):
        got = result(redis, request_id)
        wait_until(lambda: job(redis, request_id).get_status() == "finished")
    assert (got.state, got.text) == (State.INCOMPLETE, "w4")


@pytest.mark.parametrize("what", ["cancelled", "taken over"])
def test_a_hand_back_takes_nothing_from_others(redis: Redis, pipeline: Pipeline, what: str) -> None:
    request_id = submit(pipeline, NOW)
    execution = taken(pipeline, "first", "x1")
    claim(pipeline, execution)
    if what == "cancelled":
        pipeline.run([Call(script("cancel"), keys.of_request(request_id), ("test",))])
    else:
        redis.hset(keys.request(request_id), mapping={"fence": "2:x2", "attempt": 2})
    release(pipeline, [execution], crashed=False, retention_s=60)
    assert redis.lrange(keys.rq_queue(QUEUE), 0, -1) == []
    if what == "cancelled":
        assert job(redis, request_id).get_status() == "canceled"
    else:
        assert claimed(redis, QUEUE) == [request_id]
        pipeline.run([Call(script("cancel"), keys.of_request(request_id), ("test",))])
        redis.delete(keys.claimed(QUEUE))


def test_one_unreadable_request_keeps_no_neighbour_from_going_on(redis: Redis, pipeline: Pipeline) -> None:
    good, bad = submit(pipeline, NOW), submit(pipeline, NOW)
    for number in range(2):
        claim(pipeline, taken(pipeline, "dead", f"x{number}"))
    redis.delete(keys.request(bad))
    redis.set(keys.request(bad), "no hash", ex=60)
    assert release_worker(pipeline, "dead", (QUEUE,), 60) == 1
    assert redis.lrange(keys.rq_queue(QUEUE), 0, -1) == [good.encode()]
    redis.delete(keys.claimed(QUEUE))


def test_scripts_that_redis_forgets_again_and_again_are_waited_for(redis: Redis, pipeline: Pipeline) -> None:
    """As in a failover: unknown, loaded, and unknown again. The request mustn't be given up."""
    slow = CountingEngine(vocabulary=VOCABULARY, step_delay_s=0.01, slots=4)
    over = threading.Event()

    def forget() -> None:
        while not over.wait(0.001):
            redis.script_flush()

    with running_worker(redis_server_url(redis), slow):
        request_id = submit(pipeline, NOW, max_new_tokens=150)
        wait_until(lambda: redis.xlen(keys.stream(request_id)) > 4)
        thread = threading.Thread(target=forget)
        thread.start()
        wait_until(lambda: redis.xlen(keys.stream(request_id)) > 60, 30)
        over.set()
        thread.join()
        got = result(redis, request_id)
    assert (got.state, got.usage.completion_tokens, got.attempts) == (State.INCOMPLETE, 150, 1)


def test_claimed_is_dated_by_rediss_own_clock(redis: Redis, pipeline: Pipeline) -> None:
    """A worker whose clock is wrong must not look as if it had taken its jobs long ago, or will."""
    request_id = submit(pipeline, NOW)
    pipeline.run([take_call(Take("w", (QUEUE,), ("x1",), 60))])
    seconds: Any = redis.time()
    score = redis.zscore(keys.claimed(QUEUE), request_id)
    assert score is not None
    assert abs(score / 1000 - seconds[0]) < 5
    redis.delete(keys.claimed(QUEUE))


def test_dead_workers_and_old_executions_are_forgotten(redis: Redis) -> None:
    redis.sadd(keys.RQ_WORKERS, "rq:worker:gone")
    redis.sadd(keys.rq_workers(QUEUE), "rq:worker:gone")
    redis.zadd(WIP, {"nobody:x": 1})
    with running_worker(redis_server_url(redis)) as worker:
        wait_until(lambda: not redis.exists(WIP))
        wait_until(lambda: redis.smembers(keys.RQ_WORKERS) == {keys.rq_worker(worker.name).encode()})
        assert redis.smembers(keys.rq_workers(QUEUE)) == {keys.rq_worker(worker.name).encode()}


def test_a_child_that_cannot_be_started_is_no_silent_success(redis_server: RedisServer) -> None:
    settings = WorkerSettings.model_validate({"redis_url": redis_server.url, "device": "cpu"})
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        assert Supervisor(settings, command=("/nowhere/python",)).run() == 1
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def test_keeping_a_job_starts_none_that_has_ended(redis: Redis, pipeline: Pipeline) -> None:
    request_id = submit(pipeline, NOW)
    execution = taken(pipeline, "w", "x1")
    run(pipeline, Call(script("cancel"), keys.of_request(request_id), ("test",)))
    release(pipeline, [execution], crashed=False, retention_s=60)
    redis.hset(keys.rq_job(request_id), "status", "failed")
    assert pipeline.run([keep_call(execution, 60)]) == [[b"ALREADY", b"failed"]]


def test_a_request_of_another_wire_version_is_left_to_a_worker_that_knows_it(redis: Redis, pipeline: Pipeline) -> None:
    """In a rolling upgrade old and new workers share the queues: what one can't read it gives back, unharmed."""
    newer = submit(pipeline, NOW)
    redis.hset(keys.request(newer), "wire", WIRE + 1)
    before = redis.hgetall(keys.request(newer))
    with running_worker(redis_server_url(redis)) as worker:
        wait_until(lambda: refused(worker))
        assert result(redis, submit(pipeline, NOW)).state is State.INCOMPLETE
    assert redis.hgetall(keys.request(newer)) == before
    assert redis.lrange(keys.rq_queue(QUEUE), 0, -1) == [newer.encode()]
    redis.hset(keys.request(newer), "wire", 1)
    with running_worker(redis_server_url(redis)):
        assert result(redis, newer).state is State.INCOMPLETE


def test_a_worker_whose_redis_falls_silent_waits_for_seconds(redis_server: RedisServer) -> None:
    """RQ would raise the timeout of its connection to minutes, for a BLPOP that we never send."""
    with running_worker(redis_server.url) as worker:
        assert worker.connection.connection_pool.connection_kwargs["socket_timeout"] <= 5
