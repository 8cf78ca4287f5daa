"""The worker over the counting engine: from the queue to the stream, and what RQ sees meanwhile."""

from __future__ import annotations

import json
import zlib
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import pytest
from rq import Queue
from rq import Worker as RqWorker
from rq.command import send_stop_job_command
from rq.job import Job
from rq.registry import CanceledJobRegistry, FailedJobRegistry, FinishedJobRegistry, StartedJobRegistry
from rq.serializers import JSONSerializer
from rq.suspension import resume, suspend

from tests.engines import CountingEngine, counted_token
from tests.streams import parsed
from tests.waiting import wait_until
from tests.workers import MODEL, VOCABULARY, running_worker, submit
from tokenrelay.shared.errors import EngineError
from tokenrelay.shared.redis.commands import Call
from tokenrelay.shared.store.jobs import Take, take_call
from tokenrelay.shared.store.replies import Granted
from tokenrelay.shared.store.requests import Claimant, Prompt, append, claim
from tokenrelay.shared.store.scripts import script
from tokenrelay.shared.wire import answer, keys
from tokenrelay.shared.wire.entries import Ended, Entry, State

if TYPE_CHECKING:
    from pathlib import Path

    from redis import Redis
    from rq.worker import BaseWorker

    from tests.redis_servers import RedisServer
    from tokenrelay.shared.redis.batches import Pipeline
    from tokenrelay.worker.engine.contract import EngineRequest
    from tokenrelay.worker.worker import Worker

QUEUE = keys.queue(MODEL, "default")
NOW = datetime.now(UTC)


def raw_entries(redis: Redis, request_id: str) -> list[tuple[bytes, dict[bytes, bytes]]]:
    return cast("list[tuple[bytes, dict[bytes, bytes]]]", redis.xrange(keys.stream(request_id)))


def entries(redis: Redis, request_id: str) -> list[Entry]:
    return [parsed(*item) for item in raw_entries(redis, request_id)]


def ended(redis: Redis, request_id: str) -> bool:
    last = entries(redis, request_id)[-1:]
    return bool(last) and isinstance(last[0], Ended)


def result(redis: Redis, request_id: str) -> answer.Answer:
    wait_until(lambda: ended(redis, request_id))
    return answer.assemble(request_id, entries(redis, request_id))


def state(redis: Redis, request_id: str) -> str:
    value = redis.hget(keys.request(request_id), "state")
    return value.decode() if isinstance(value, bytes) else ""


def words(seed: int, count: int) -> str:
    return " ".join(f"w{counted_token(seed, position, VOCABULARY)}" for position in range(1, count + 1))


def job(redis: Redis, request_id: str) -> Job:
    return Job.fetch(request_id, connection=redis, serializer=JSONSerializer)


def rq_worker(redis: Redis, name: str) -> BaseWorker:
    """The worker as RQ sees it."""
    found = RqWorker.find_by_key(keys.rq_worker(name), connection=redis, serializer=JSONSerializer)
    assert found is not None
    return found


def rq_state(redis: Redis, name: str) -> str:
    return rq_worker(redis, name).get_state()


def job_failed(redis: Redis, request_id: str) -> bool:
    return redis.hget(keys.rq_job(request_id), "status") == b"failed"


def refused(worker: Worker) -> float:
    """How many claims it was refused because the request needs another worker."""
    return dict(worker.threads.figures.refused_claims.items())["not_mine",]


def submit_suspended(redis: Redis, pipeline: Pipeline) -> str:
    """A long request that no worker takes before `resume`."""
    suspend(redis, ttl=60)
    return submit(pipeline, NOW, max_new_tokens=5000)


def slow_engine(slots: int = 8) -> CountingEngine:
    return CountingEngine(vocabulary=VOCABULARY, step_delay_s=0.02, slots=slots)


def test_a_request_becomes_a_stream(redis_server: RedisServer, redis: Redis, pipeline: Pipeline) -> None:
    with running_worker(redis_server.url):
        request_id = submit(pipeline, NOW, seed=3, max_new_tokens=12)
        got = result(redis, request_id)
    assert got.text == words(3, 12)
    assert (got.state, got.finish_reason, got.attempts, got.seed) == (State.INCOMPLETE, "length", 1, 3)
    assert (got.usage.prompt_tokens, got.usage.completion_tokens) == (3, 12)


def test_entries_are_there_while_the_stream_is_open(
    redis_server: RedisServer, redis: Redis, pipeline: Pipeline
) -> None:
    with running_worker(redis_server.url, slow_engine()):
        request_id = submit(pipeline, NOW, max_new_tokens=100)
        wait_until(lambda: redis.xlen(keys.stream(request_id)) >= 5)
        assert not ended(redis, request_id)
        assert state(redis, request_id) == "in_progress"
        assert [token_id for token_id, fields in raw_entries(redis, request_id) if b"token" in fields][1] == b"2-0"
        assert result(redis, request_id).usage.completion_tokens == 100


def test_many_at_once_keep_apart(redis_server: RedisServer, redis: Redis, pipeline: Pipeline) -> None:
    with running_worker(redis_server.url, CountingEngine(vocabulary=VOCABULARY, slots=4), slots=4):
        ids = {seed: submit(pipeline, NOW, seed=seed, max_new_tokens=5 + seed) for seed in range(20)}
        for seed, request_id in ids.items():
            assert result(redis, request_id).text == words(seed, 5 + seed)


def test_a_stop_string_ends_the_answer_before_it(redis_server: RedisServer, redis: Redis, pipeline: Pipeline) -> None:
    whole = words(5, 10).split(" ")
    with running_worker(redis_server.url):
        request_id = submit(pipeline, NOW, seed=5, max_new_tokens=50, stop=[f" {whole[3]} {whole[4]}"])
        got = result(redis, request_id)
    assert got.text == " ".join(whole[:3])
    assert (got.state, got.finish_reason, got.usage.completion_tokens) == (State.COMPLETED, "stop", 5)


def test_rq_sees_a_job_run_and_finish(redis_server: RedisServer, redis: Redis, pipeline: Pipeline) -> None:
    queue = Queue(QUEUE, connection=redis, serializer=JSONSerializer)
    with running_worker(redis_server.url, slow_engine()) as worker:
        request_id = submit(pipeline, NOW, max_new_tokens=50)
        wait_until(lambda: redis.xlen(keys.stream(request_id)) >= 4)
        running = job(redis, request_id)
        assert (running.get_status(), running.worker_name) == ("started", worker.name)
        assert StartedJobRegistry(queue=queue).get_job_ids() == [request_id]
        executions = rq_worker(redis, worker.name).get_current_executions()
        assert [execution.job_id for execution in executions] == [request_id]
        wait_until(lambda: rq_state(redis, worker.name) == "busy")
        result(redis, request_id)
        wait_until(lambda: job(redis, request_id).get_status() == "finished")
        assert FinishedJobRegistry(queue=queue).get_job_ids() == [request_id]
        assert StartedJobRegistry(queue=queue).get_job_ids() == []
        latest = job(redis, request_id).latest_result()
        assert latest is not None
        assert latest.return_value == "50 tokens, length"
        wait_until(lambda: rq_state(redis, worker.name) == "idle")
        assert redis.zcard(keys.claimed(QUEUE)) == 0


def test_rqs_stop_command_cancels_the_request(redis_server: RedisServer, redis: Redis, pipeline: Pipeline) -> None:
    with running_worker(redis_server.url, slow_engine(slots=2), slots=2) as worker:
        first, second = (submit(pipeline, NOW, seed=seed, max_new_tokens=200) for seed in (1, 2))
        wait_until(lambda: len(worker.threads.status.held) == 2)
        send_stop_job_command(
            redis, second, serializer=JSONSerializer
        )  # not the first execution: RQ's own would refuse
        got = result(redis, second)
        assert (got.state, got.cancelled_by) == (State.CANCELLED, "rq stop command")
        wait_until(lambda: job(redis, second).get_status() == "stopped")
        assert second in FailedJobRegistry(QUEUE, connection=redis, serializer=JSONSerializer).get_job_ids()
        assert state(redis, first) == "in_progress"
        assert result(redis, first).usage.completion_tokens == 200


def test_malformed_commands_change_nothing(redis_server: RedisServer, redis: Redis, pipeline: Pipeline) -> None:
    with running_worker(redis_server.url) as worker:
        for message in (b"\xff", b"{}", b"[1]", b'{"command": "kill-horse"}', b'{"command": "stop-job"}'):
            redis.publish(keys.rq_commands(worker.name), message)
        assert result(redis, submit(pipeline, NOW)).state is State.INCOMPLETE
        send_stop_job_command_works = submit(pipeline, NOW, max_new_tokens=3)
        assert result(redis, send_stop_job_command_works).usage.completion_tokens == 3


@pytest.mark.parametrize("running", [False, True])
def test_a_job_cancelled_through_rq_cancels_the_request(
    redis_server: RedisServer, redis: Redis, pipeline: Pipeline, running: bool
) -> None:
    with running_worker(redis_server.url, slow_engine(slots=1), slots=1) as worker:
        if not running:
            submit(pipeline, NOW, max_new_tokens=60)
            wait_until(lambda: len(worker.threads.status.held) == 1)
        request_id = submit(pipeline, NOW, max_new_tokens=500)
        if running:
            wait_until(lambda: state(redis, request_id) == "in_progress")
        job(redis, request_id).cancel()
        got = result(redis, request_id)
        assert (got.state, got.cancelled_by) == (State.CANCELLED, "rq")
        wait_until(lambda: job(redis, request_id).get_status() == "canceled")
        registry = CanceledJobRegistry(QUEUE, connection=redis, serializer=JSONSerializer)
        wait_until(lambda: registry.get_job_ids() == [request_id])


def test_requeueing_a_finished_request_is_refused_without_harm(
    redis_server: RedisServer, redis: Redis, pipeline: Pipeline
) -> None:
    with running_worker(redis_server.url):
        request_id = submit(pipeline, NOW)
        result(redis, request_id)
        wait_until(lambda: job(redis, request_id).get_status() == "finished")
        before = raw_entries(redis, request_id)
        Queue(QUEUE, connection=redis, serializer=JSONSerializer).enqueue_job(job(redis, request_id))
        wait_until(lambda: redis.llen(keys.rq_queue(QUEUE)) == 0)
        wait_until(lambda: job(redis, request_id).get_status() == "finished")
        assert raw_entries(redis, request_id) == before


def test_hostile_jobs_fail_alone(redis_server: RedisServer, redis: Redis, pipeline: Pipeline, tmp_path: Path) -> None:
    queue = Queue(QUEUE, connection=redis, serializer=JSONSerializer)
    with running_worker(redis_server.url):
        system = queue.enqueue("os.system", f"touch {tmp_path}/owned", result_ttl=60, failure_ttl=60)
        callbacks = submit(pipeline, NOW)
        redis.hset(keys.rq_job(callbacks), "success_callback_name", "os.system")
        good = submit(pipeline, NOW)
        assert result(redis, good).state is State.INCOMPLETE
        assert result(redis, callbacks).state is State.INCOMPLETE
        wait_until(lambda: system.get_status(refresh=True) == "failed")
    assert list(tmp_path.iterdir()) == []


def test_a_malformed_request_fails_alone(redis_server: RedisServer, redis: Redis, pipeline: Pipeline) -> None:
    suspend(redis, ttl=60)
    bad: dict[str, dict[Any, Any]] = {
        "not json": {"request": "{"},
        "not a request": {"request": json.dumps({"prompt": 1})},
        "not utf-8": {"request": b"\xff\xfe"},
        "no deadline": {"deadline_us": "zz"},
        "no attempts": {"attempt": ""},
        "no token IDs": {"prompt_ids": "[1, 2"},
        "another model's token IDs": {"prompt_ids": f"[{10**9}]"},
        "negative token IDs": {"prompt_ids": "[-1]"},
        "numbers that aren't": {"prompt_ids": "[true, 1.5]"},
    }
    ids = {name: submit(pipeline, NOW) for name in bad}
    for name, request_id in ids.items():
        redis.hset(keys.request(request_id), mapping=bad[name])
    other_call = submit(pipeline, NOW)
    redis.hset(keys.rq_job(other_call), "data", zlib.compress(json.dumps(["os.system", None, ["id"], {}]).encode()))
    huge = submit(pipeline, NOW)
    redis.hset(keys.rq_job(huge), "data", b"x" * 1_000_000)
    wrong_type = submit(pipeline, NOW)
    redis.delete(keys.request(wrong_type))
    redis.rpush(keys.request(wrong_type), "a list")
    redis.expire(keys.request(wrong_type), 60)
    good = submit(pipeline, NOW)
    with running_worker(redis_server.url):
        resume(redis)
        assert result(redis, good).state is State.INCOMPLETE
        for request_id in ids.values():
            failed = result(redis, request_id)
            assert (failed.state, failed.finish_reason) == (State.FAILED, "error")
        assert {result(redis, request_id).code for request_id in (other_call, huge)} == {"invalid_job"}
        for request_id in (*ids.values(), other_call, huge, wrong_type):
            wait_until(partial(job_failed, redis, request_id))


def test_too_long_a_prompt_fails_with_its_code(redis_server: RedisServer, redis: Redis, pipeline: Pipeline) -> None:
    engine = CountingEngine(vocabulary=VOCABULARY, context_tokens=16)
    with running_worker(redis_server.url, engine):
        too_long = result(redis, submit(pipeline, NOW, prompt=" ".join(["w1"] * 16)))
        fits = result(redis, submit(pipeline, NOW, prompt=" ".join(["w1"] * 10), max_new_tokens=100))
    assert (too_long.state, too_long.code) == (State.FAILED, "prompt_too_long")
    assert (fits.state, fits.finish_reason, fits.usage.completion_tokens) == (State.INCOMPLETE, "length", 6)


def test_a_deadline_cuts_a_running_request(redis_server: RedisServer, redis: Redis, pipeline: Pipeline) -> None:
    with running_worker(redis_server.url, slow_engine()):
        got = result(redis, submit(pipeline, NOW, max_new_tokens=5000, deadline_s=0.5))
    assert (got.state, got.finish_reason) == (State.INCOMPLETE, "deadline")
    assert 0 < got.usage.completion_tokens < 60
    assert got.text == words(7, got.usage.completion_tokens)


def test_a_request_past_its_deadline_expires_unclaimed(
    redis_server: RedisServer, redis: Redis, pipeline: Pipeline
) -> None:
    request_id = submit(pipeline, NOW, deadline_s=0.001)
    with running_worker(redis_server.url):
        assert result(redis, request_id).state is State.EXPIRED
        wait_until(lambda: job(redis, request_id).get_status() == "failed")


def test_a_cancelled_request_frees_its_slot(redis_server: RedisServer, redis: Redis, pipeline: Pipeline) -> None:
    with running_worker(redis_server.url, slow_engine(slots=1), slots=1) as worker:
        request_id = submit(pipeline, NOW, max_new_tokens=5000)
        wait_until(lambda: redis.xlen(keys.stream(request_id)) >= 4)
        pipeline.run([Call(script("cancel"), (keys.request(request_id), keys.stream(request_id)), ("test",))])
        wait_until(lambda: not worker.threads.status.held)
        assert result(redis, submit(pipeline, NOW)).state is State.INCOMPLETE
        assert result(redis, request_id).state is State.CANCELLED
        wait_until(lambda: job(redis, request_id).get_status() == "canceled")


def test_a_cancel_reaches_a_worker_between_two_steps(
    redis_server: RedisServer, redis: Redis, pipeline: Pipeline
) -> None:
    """Neither an append nor a heartbeat is near: the message alone frees the slot."""
    slow = CountingEngine(vocabulary=VOCABULARY, step_delay_s=1.0, slots=1)
    with running_worker(redis_server.url, slow, slots=1, heartbeat_ms=5000) as worker:
        request_id = submit(pipeline, NOW, max_new_tokens=100)
        wait_until(lambda: redis.xlen(keys.stream(request_id)) >= 3)
        pipeline.run([Call(script("cancel"), (keys.request(request_id), keys.stream(request_id)), ("test",))])
        wait_until(lambda: not worker.threads.status.held, timeout_s=0.5)


def test_a_cancel_between_claim_and_engine_leaks_no_slot(
    redis_server: RedisServer, redis: Redis, pipeline: Pipeline
) -> None:
    class CancelledOnTheWay(CountingEngine):
        """A cancel comes right before the engine hears of the request."""

        def add(self, request: EngineRequest) -> None:
            if not added:
                added.append(request.engine_id)
                pipeline.run([Call(script("cancel"), keys.of_request(first), ("test",))])
            super().add(request)

    added: list[str] = []
    engine = CancelledOnTheWay(vocabulary=VOCABULARY, step_delay_s=0.02, slots=1)
    first = submit_suspended(redis, pipeline)
    with running_worker(redis_server.url, engine, slots=1):
        resume(redis)
        assert result(redis, first).state is State.CANCELLED
        second = submit(pipeline, NOW, max_new_tokens=5)
        assert result(redis, second).usage.completion_tokens == 5


def test_another_models_fingerprint_is_not_continued(
    redis_server: RedisServer, redis: Redis, pipeline: Pipeline
) -> None:
    request_id = submit(pipeline, NOW)
    redis.hset(keys.request(request_id), "fingerprint", "another model's")
    with running_worker(redis_server.url, fingerprint="this one's") as worker:
        wait_until(lambda: refused(worker))
        assert state(redis, request_id) == "queued"
    assert redis.llen(keys.rq_queue(QUEUE)) == 1
    with running_worker(redis_server.url, fingerprint="another model's"):
        assert result(redis, request_id).state is State.INCOMPLETE


def test_draining_hands_back_mid_stream_and_another_continues(
    redis_server: RedisServer, redis: Redis, pipeline: Pipeline
) -> None:
    with running_worker(redis_server.url, slow_engine(), drain_timeout_s=0.0):
        request_id = submit(pipeline, NOW, seed=9, max_new_tokens=60)
        wait_until(lambda: redis.xlen(keys.stream(request_id)) >= 10)
    assert state(redis, request_id) == "in_progress"
    assert job(redis, request_id).get_status() == "queued"
    with running_worker(redis_server.url):
        got = result(redis, request_id)
    assert (got.text, got.attempts) == (words(9, 60), 2)
    assert got.usage.recomputed_tokens >= 3 + 8


def test_a_dying_engine_hands_over_and_ends_the_worker(
    redis_server: RedisServer, redis: Redis, pipeline: Pipeline
) -> None:
    request_id = submit(pipeline, NOW, seed=4, max_new_tokens=40)
    with pytest.raises(EngineError), running_worker(redis_server.url, CountingEngine(fail_after=15)):
        wait_until(lambda: redis.hget(keys.request(request_id), "crashes") == b"1")
    assert job(redis, request_id).get_status() == "queued"
    with running_worker(redis_server.url):
        got = result(redis, request_id)
    assert (got.text, got.attempts) == (words(4, 40), 2)


def test_a_request_whose_worker_vanished_is_continued(
    redis_server: RedisServer, redis: Redis, pipeline: Pipeline
) -> None:
    """What a lost host leaves: a fence whose lease has run out, and nobody who renews it."""
    request_id = submit(pipeline, NOW, seed=11, max_new_tokens=80)
    pipeline.run([take_call(Take("lost", (QUEUE,), ("x1",), 60))])
    claimant = Claimant("lost", MODEL, "counting-1", lease_ms=1, max_crashes=3, suspicion_ms=500)
    granted = pipeline.ask(claim(request_id, "x1", claimant, Prompt(11, 3, "[1, 2, 3]")))
    assert isinstance(granted, Granted)
    before = [counted_token(11, position, VOCABULARY) for position in range(1, 11)]
    tokens = [(f"w{token}" if index == 0 else f" w{token}", token) for index, token in enumerate(before)]
    pipeline.run([append(request_id, granted.fence, 1, tokens, 1)])
    with running_worker(redis_server.url, slow_engine()):
        got = result(redis, request_id)
    assert (got.text, got.attempts) == (words(11, 80), 2)
