"""Workers on separate hosts with one Redis. One host is disconnected mid-stream, and reconnected."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Final

import pytest

from tests.faults.hosts import Host, missing
from tests.faults.nursery import ROOT
from tests.integration.test_worker import entries
from tests.readers import Readers
from tests.redis_servers import RedisServer
from tests.waiting import wait_until
from tokenrelay.producer import Producer
from tokenrelay.shared.wire import keys
from tokenrelay.shared.wire.entries import Migrated, Started

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from redis import Redis

    from tokenrelay.producer import Generation, Options

STREAMS: Final = 8
TOKENS: Final = 600
LEASE_S: Final = 6.0
"""The default, which the workers run with."""
SECRET: Final = "of-the-hosts"
CHOSEN: Final[Options] = {"max_new_tokens": TOKENS, "ignore_eos": True, "temperature": 3}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@contextmanager
def worker_on(host: Host, port: int, folder: Path) -> Iterator[None]:
    """A worker of the bundled model on `host`, whose name is its own."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "TOKENRELAY_REDIS_URL": f"redis://:{SECRET}@{host.here}:{port}/0",
        "TOKENRELAY_WORKER_NAME": host.name,
        "TOKENRELAY_DTYPE": "float64",
        "TOKENRELAY_SLOTS": str(STREAMS),
        "TOKENRELAY_DRAIN_TIMEOUT_S": "0",
    }
    command = host.command(sys.executable, "-m", "tokenrelay.worker", "run")
    with (folder / f"{host.name}.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stderr=log)
    try:
        yield
    finally:
        process.terminate()
        process.wait(60)


def serving(redis: Redis, host: Host) -> bool:
    pid, death = redis.hmget(keys.rq_worker(f"{host.name}.0"), "pid", "death")
    return pid is not None and death is None


def submit(producer: Producer) -> list[Generation]:
    return producer.submit_many(
        [{"prompt": "What is the weather today?", "seed": seed} for seed in range(STREAMS)], **CHOSEN
    )


def workers_of(redis: Redis, generation: Generation) -> list[str]:
    """The hosts that have written to it, in order."""
    events = [entry for entry in entries(redis, generation.request_id) if isinstance(entry, Started | Migrated)]
    return [event.worker.removesuffix(".0") for event in events]


def pause_ms(generation: Generation, cut_at_us: int) -> float:
    """From the cut to the first token behind it."""
    return min(token.at_us - cut_at_us for token in generation.tokens() if token.at_us > cut_at_us) / 1000


def test_a_host_that_is_cut_off_costs_a_lease_and_no_token(tmp_path: Path) -> None:
    if reason := missing():
        pytest.skip(reason)
    with ExitStack() as stack:
        hosts = [stack.enter_context(Host()) for _ in range(2)]
        addresses = ["127.0.0.1", *(host.here for host in hosts)]
        server = RedisServer(tmp_path, "--bind", *addresses, password=SECRET)
        stack.callback(server.kill)
        redis = stack.enter_context(server.client())
        producer = stack.enter_context(Producer(server.url))
        for host in hosts:
            stack.enter_context(worker_on(host, server.port, tmp_path))
        for host in hosts:
            wait_until(lambda host=host: serving(redis, host), 90)  # type: ignore[misc]

        generations = submit(producer)
        readers = Readers(generations)
        wait_until(lambda: readers.all_have(20), 60)
        # Whoever took the first stream; a few, if not all, are its.
        lost = next(host for host in hosts if host.name == workers_of(redis, generations[0])[-1])
        other = next(host for host in hosts if host is not lost)
        lost.cut_off()
        cut_at_us = time.time_ns() // 1000
        moved = [generation for generation in generations if workers_of(redis, generation)[-1] == lost.name]
        wait_until(lambda: all(workers_of(redis, generation)[-1] == other.name for generation in moved), LEASE_S + 30)
        # What the lost host still has in its sockets now arrives, and is refused.
        lost.reconnect()
        readers.join()

        pauses = [pause_ms(generation, cut_at_us) for generation in moved]
        print(f"{len(moved)} of {STREAMS} streams taken over after {min(pauses):.0f} to {max(pauses):.0f} ms")  # noqa: T201
        for generation, seen in zip(generations, readers.seen, strict=True):
            assert len(seen) == generation.result().usage.completion_tokens == TOKENS
            assert [token.token_id for token in generation.tokens()] == seen
        assert all(workers_of(redis, generation) == [lost.name, other.name] for generation in moved)

        # The host is whole again: alone, it writes what was written, token by token.
        other.cut_off()
        again = submit(producer)
        undisturbed = Readers(again)
        undisturbed.join()
        assert all(workers_of(redis, generation) == [lost.name] for generation in again)
        assert undisturbed.seen == readers.seen
        other.reconnect()
