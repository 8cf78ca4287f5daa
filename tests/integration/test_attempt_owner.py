"""One thread owns the attempts: nobody but the generation loop's makes, reads or writes one."""

from __future__ import annotations

import ast
import threading
from contextlib import contextmanager
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, get_args

import pytest
from pydantic import SecretStr
from rq.command import send_stop_job_command
from rq.serializers import JSONSerializer

from tests.engines import CountingEngine
from tests.integration.test_worker import job, result, slow_engine, state, words
from tests.waiting import wait_until
from tests.workers import running_worker, served, submit
from tokenrelay.shared.redis.commands import Call
from tokenrelay.shared.settings import WorkerSettings
from tokenrelay.shared.store.scripts import script
from tokenrelay.shared.wire import keys
from tokenrelay.shared.wire.entries import State
from tokenrelay.worker.core import attempts
from tokenrelay.worker.core.attempts import Attempt
from tokenrelay.worker.core.holdings import Holdings
from tokenrelay.worker.core.messages import IntakeMessage, JobMessage, Message
from tokenrelay.worker.metrics import Restarts, WorkerMetrics
from tokenrelay.worker.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Iterator

    from redis import Redis

    from tests.redis_servers import RedisServer
    from tokenrelay.shared.redis.batches import Pipeline
    from tokenrelay.worker.core.attempts import Claimed

NOW = datetime.now(UTC)
WORKER = Path(attempts.__file__).parents[1]
OWNERS = {"core/attempts.py", "core/closings.py", "core/figures.py", "core/holdings.py", "core/publisher.py"}
"""What may name an Attempt: these run in the loop's thread, and start none."""


class Watched(Attempt):
    """Notes the threads that read or write it."""

    touched: ClassVar[dict[str, str]] = {}

    def __getattribute__(self, name: str) -> Any:
        Watched.touched[threading.current_thread().name] = f"read {name}"
        return super().__getattribute__(name)

    def __setattr__(self, name: str, value: object) -> None:
        Watched.touched[threading.current_thread().name] = f"wrote {name}"
        super().__setattr__(name, value)


class WatchedHoldings(Holdings):
    def attempt(self, claimed: Claimed) -> Attempt:
        return Watched.begin(claimed)


@contextmanager
def watched_worker(url: str, **settings: Any) -> Iterator[Worker]:
    """A worker whose attempts are watched; its loop runs in a thread named `loop`."""
    chosen = WorkerSettings(redis_url=SecretStr(url), heartbeat_ms=50, drain_timeout_s=0.0, **settings)
    worker = Worker(chosen, served(slow_engine()))
    loop = worker.threads.loop
    given = loop.holdings
    loop.holdings = WatchedHoldings(given.engine, given.publisher, given.jobs, given.status, given.figures)
    thread = threading.Thread(target=worker.work, name="loop")
    thread.start()
    try:
        yield worker
    finally:
        worker.stop()
        thread.join()
        worker.connection.close()


def test_every_read_and_write_of_an_attempt_is_the_loops(
    redis_server: RedisServer, redis: Redis, pipeline: Pipeline
) -> None:
    """A run with all that others want of a worker: cancels, RQ's stop, deadlines, lost fences, takeovers, a drain."""
    with running_worker(redis_server.url, slow_engine(), drain_timeout_s=0.0):
        taken_over = submit(pipeline, NOW, seed=9, max_new_tokens=40)
        wait_until(lambda: redis.xlen(keys.stream(taken_over)) >= 10)
    Watched.touched.clear()
    with watched_worker(redis_server.url) as worker:
        assert result(redis, taken_over).text == words(9, 40)
        cancelled, stopped, deleted, fenced, drained = (submit(pipeline, NOW, max_new_tokens=5000) for _ in range(5))
        overdue = submit(pipeline, NOW, max_new_tokens=5000, deadline_s=0.5)
        wait_until(lambda: redis.xlen(keys.stream(drained)) > 4)
        pipeline.run([Call(script("cancel"), keys.of_request(cancelled), ("test",))])
        send_stop_job_command(redis, stopped, serializer=JSONSerializer)
        job(redis, deleted).cancel()
        redis.hset(keys.request(fenced), "fence", "2:another")
        metrics = WorkerMetrics(worker.threads, served(CountingEngine()), worker.settings, Restarts())
        for request_id, end in ((cancelled, State.CANCELLED), (stopped, State.CANCELLED), (deleted, State.CANCELLED)):
            assert result(redis, request_id).state is end
            assert list(metrics.families())
        assert result(redis, overdue).state is State.INCOMPLETE
        wait_until(lambda: worker.threads.status.held == {drained})
    assert (state(redis, drained), redis.hget(keys.request(drained), "fence")) == ("in_progress", b"")
    assert set(Watched.touched) == {"loop"}, Watched.touched
    pipeline.run([Call(script("cancel"), keys.of_request(each), ("test",)) for each in (drained, fenced)])


def test_only_what_runs_in_the_loops_thread_names_an_attempt() -> None:
    """Modules of other threads get values. `Attempt` in an annotation counts."""
    naming, starting = set(), set()
    for file in WORKER.rglob("*.py"):
        names = {node.id for node in ast.walk(ast.parse(file.read_text("utf-8"))) if isinstance(node, ast.Name)}
        module = str(file.relative_to(WORKER))
        naming |= {module} if "Attempt" in names else set()
        starting |= {module} if "threading" in names else set()
    assert naming == OWNERS
    assert not naming & starting


@pytest.mark.parametrize("message", get_args(Message) + get_args(IntakeMessage) + get_args(JobMessage))
def test_messages_are_values(message: Any) -> None:
    """Frozen, and none of them carries an Attempt."""
    assert message.__dataclass_params__.frozen
    assert not any("Attempt" in str(field.type) for field in fields(message))
