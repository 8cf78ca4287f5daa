"""A fleet of counting workers on one Redis, and the commands that it costs: `python -m tests.fleet` prints the table of
docs/scaling.md.

The workers are real ones in processes of their own, forked from one that has imported everything; only their engine is
the counting one. What Redis does inside scripts is counted too (INFO commandstats).
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import psutil

from tests.engines import CountingEngine
from tests.redis_servers import RedisServer
from tests.two_planes import pipeline_on
from tests.waiting import wait_until
from tests.workers import MODEL, VOCABULARY, served, submit
from tokenrelay.shared.redis.commands import Call
from tokenrelay.shared.settings import WorkerSettings
from tokenrelay.shared.store.scripts import script
from tokenrelay.shared.wire import keys
from tokenrelay.worker.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Iterator

    from redis import Redis

    from tokenrelay.shared.redis.batches import Pipeline

ROOT: Final = Path(__file__).parents[1]
SLOTS: Final = 8
STEP_S: Final = 0.05
HEAD: Final = (
    "| workers | commands per token | per idle worker and second | per request of one token |\n|---|---|---|---|\n"
)
_PIPE_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class Cost:
    """The cost of a fleet of `workers` for Redis, in commands."""

    workers: int
    per_token: float
    """With all slots generating: commands per token."""
    per_idle_worker_s: float
    """Idle: commands per worker and second."""
    per_short_request: float
    """One-token requests, one at a time, to idle workers: commands per request beyond the idle ones."""


def run_worker() -> None:
    engine = CountingEngine(vocabulary=VOCABULARY, step_delay_s=STEP_S, slots=SLOTS)
    worker = Worker(WorkerSettings.from_environment(), served(engine))
    worker.handle_signals()
    worker.work()


def host(workers: int) -> None:
    """Fork the workers and wait for them; forwards SIGTERM."""
    children = []
    for _ in range(workers):
        if (pid := os.fork()) == 0:
            run_worker()
            os._exit(0)
        children.append(pid)

    def stop(*_: object) -> None:
        for pid in children:
            os.kill(pid, signal.SIGTERM)

    signal.signal(signal.SIGTERM, stop)
    for pid in children:
        os.waitpid(pid, 0)


@dataclass(slots=True)
class Fleet:
    """A running one."""

    host: psutil.Process

    def kill(self) -> None:
        """As for a lost host: nothing is released, and no worker is restarted."""
        for process in (*self.host.children(), self.host):
            process.kill()


@contextmanager
def fleet(redis: Redis, url: str, workers: int, **environment: str) -> Iterator[Fleet]:
    """Start a number of workers, registered and idle."""
    command = [sys.executable, "-m", "tests.fleet", "--host", str(workers)]
    asked = {"TOKENRELAY_REDIS_URL": url, "TOKENRELAY_DRAIN_TIMEOUT_S": "0", **environment}
    with subprocess.Popen(command, cwd=ROOT, env={**os.environ, **asked}) as process:
        try:
            wait_until(lambda: redis.scard(keys.rq_workers(keys.queue(MODEL, "default"))) == workers, 120)
            yield Fleet(psutil.Process(process.pid))
        finally:
            process.terminate()
            process.wait(60)


@dataclass(slots=True)
class Meter:
    """Commands executed by Redis since the last reading, without the reading itself."""

    redis: Redis

    def read(self) -> dict[str, int]:
        stats: Any = self.redis.info("commandstats")
        return {name.removeprefix("cmdstat_"): each["calls"] for name, each in stats.items()}

    def since(self, before: dict[str, int]) -> dict[str, int]:
        return {name: count - before.get(name, 0) for name, count in self.read().items() if name != "info"}


def measured(redis: Redis, url: str, workers: int, window_s: float) -> Cost:
    """Measure the cost of a fleet of this size."""
    pipeline, meter = pipeline_on(redis), Meter(redis)
    with fleet(redis, url, workers):
        idle = _idle(meter, workers, window_s)
        short = _short(redis, pipeline, meter, workers, idle)
        return Cost(workers, _busy(redis, pipeline, meter, workers, window_s), idle, short)


def _idle(meter: Meter, workers: int, window_s: float) -> float:
    before, began = meter.read(), time.monotonic()
    time.sleep(window_s)
    return sum(meter.since(before).values()) / workers / (time.monotonic() - began)


def _short(redis: Redis, pipeline: Pipeline, meter: Meter, workers: int, idle: float, requests: int = 40) -> float:
    """The commands beyond those of as many idle workers in the same time."""
    before, began = meter.read(), time.monotonic()
    polls = 0
    for _ in range(requests):
        request_id = submit(pipeline, datetime.now(UTC), max_new_tokens=1)
        while redis.hget(keys.request(request_id), "state") != b"incomplete":
            polls += 1
            time.sleep(0.01)
        polls += 1
    spent = sum(meter.since(before).values()) - polls
    return (spent - idle * workers * (time.monotonic() - began)) / requests


def _busy(redis: Redis, pipeline: Pipeline, meter: Meter, workers: int, window_s: float) -> float:
    ids = [submit(pipeline, datetime.now(UTC), max_new_tokens=5_000) for _ in range(workers * SLOTS)]
    wait_until(lambda: all(redis.xlen(keys.stream(request_id)) > 3 for request_id in ids), _PIPE_S + 2 * workers)
    before = meter.read()
    time.sleep(window_s)
    spent = meter.since(before)
    pipeline.run([Call(script("cancel"), keys.of_request(request_id), ("test",)) for request_id in ids])
    claimed = [keys.claimed(queue) for queue in keys.queues(MODEL)]
    wait_until(lambda: not redis.exists(*claimed), _PIPE_S)
    return sum(spent.values()) / spent["xadd"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", type=int, help="be a host of so many workers")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--seconds", type=float, default=10.0)
    arguments = parser.parse_args()
    if arguments.host:
        host(arguments.host)
        return
    sys.stdout.write(HEAD)
    with tempfile.TemporaryDirectory() as folder:
        server = RedisServer(Path(folder))
        try:
            with server.client() as redis:
                for workers in arguments.workers:
                    cost = measured(redis, server.url, workers, arguments.seconds)
                    row = (f"{cost.per_token:.2f}", f"{cost.per_idle_worker_s:.0f}", f"{cost.per_short_request:.0f}")
                    sys.stdout.write(f"| {workers} | {' | '.join(row)} |\n")
                    sys.stdout.flush()
        finally:
            server.kill()


if __name__ == "__main__":
    main()
