"""Scaling: the cost of a token by number of live streams, readers, and tokens per stream. Without a model.

Reports the publisher's time including Redis, which each worker pays, and Redis's CPU time, which all workers share.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from benchmarks.children import Child
from benchmarks.plane import TUNED, Fenced
from benchmarks.report import Measurement
from tests.redis_servers import RedisServer
from tokenrelay.shared.wire import keys

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import redis

    from benchmarks.options import BenchOptions

GROUPS: Final = ("growth: live streams", "growth: tokens a stream", "growth: readers")
STREAMS: Final = (10, 32, 100, 320, 1000, 2000, 5000)
READERS: Final = (1, 32, 100, 320, 1000, 2000)
LENGTHS: Final = (10, 32, 100, 320, 1000, 3200, 8192)
_TOKENS: Final = 20_000
"""Tokens written to all streams for one point of a line."""
_READ_STREAMS: Final = 32
_READ_STEPS: Final = 40
_STEP_S: Final = 0.1
_LONG_STREAMS: Final = 8
_PAGE: Final = 512
"""Entries per read of a consumer."""


def measure(options: BenchOptions) -> Iterator[Measurement]:
    with _server(options, "growth") as client:
        yield from _live_streams(client, options)
    with _server(options, "growth-lengths") as client:
        yield from _lengths(client, options)
    with _server(options, "growth-readers", "--maxclients", "4096") as client:
        yield from _readers(client, options)


@contextmanager
def _server(options: BenchOptions, name: str, *arguments: str) -> Iterator[redis.Redis]:
    folder = options.folder / name
    folder.mkdir()
    server = RedisServer(folder, *TUNED, *arguments)
    try:
        with server.client() as client:
            yield client
    finally:
        server.stop()


def _live_streams(client: redis.Redis, options: BenchOptions) -> Iterator[Measurement]:
    group = GROUPS[0]
    counts = STREAMS[:2] if options.quick else STREAMS
    walls: dict[int, list[float]] = {count: [] for count in counts}
    served: dict[int, list[float]] = {count: [] for count in counts}
    for _ in range(options.rounds):
        client.flushall()
        writers = [Fenced(client, count) for count in counts]
        for writer in writers:
            writer.step(1)  # creates its stream, and loads the scripts
        for count, writer in zip(counts, writers, strict=True):
            steps = max((200 if options.quick else _TOKENS) // count, 2)
            wall_us, redis_us = _cost(client, writer, steps)
            walls[count].append(wall_us)
            served[count].append(redis_us)
    for count in counts:
        yield _point(group, f"{count:,} live streams", "a token, at the worker", "µs", walls[count], count)
        yield _point(group, f"{count:,} live streams", "of which Redis's CPU", "µs", served[count], count)


def _lengths(client: redis.Redis, options: BenchOptions) -> Iterator[Measurement]:
    """Growing streams: cost of an append, memory of a token, cost of reading it."""
    group = GROUPS[1]
    lengths = LENGTHS[:2] if options.quick else LENGTHS
    walls: dict[int, list[float]] = {length: [] for length in lengths}
    sizes: dict[int, list[float]] = {length: [] for length in lengths}
    reads: dict[int, list[float]] = {length: [] for length in lengths}
    for _ in range(options.rounds):
        client.flushall()
        writer = Fenced(client, _LONG_STREAMS)
        stream = keys.stream(writer.attempts[0].request_id)
        writer.step(1)  # creates its stream, and loads the scripts
        written = 1
        for length in lengths:
            wall_us, _ = _cost(client, writer, length - written)
            written = length
            walls[length].append(wall_us)
            sizes[length].append((client.memory_usage(stream, samples=0) or 0) / length)
            began = time.perf_counter()
            for first in range(1, length + 1, _PAGE):
                client.xrange(stream, f"{first}-0", "+", count=_PAGE)
            reads[length].append((time.perf_counter() - began) * 1e6 / length)
    for length in lengths:
        name = f"{length:,} tokens a stream"
        yield _point(group, name, "an append, at the worker", "µs", walls[length], length)
        yield _point(group, name, "read from the first on, a token", "µs", reads[length], length)
        yield _point(group, name, "memory in Redis, a token", "bytes", sizes[length], length)


def _readers(client: redis.Redis, options: BenchOptions) -> Iterator[Measurement]:
    """32 streams at 10 steps a second, each with an equal share of blocked readers."""
    group = GROUPS[2]
    counts = READERS[:2] if options.quick else READERS
    with Child("benchmarks.stream_readers", log=options.folder / "log.txt") as readers:
        for count in counts:
            costs, p50s, p99s = [], [], []
            for _ in range(options.rounds):
                client.flushall()
                redis_us, delays_ms = _followed(client, readers, count, 10 if options.quick else _READ_STEPS)
                costs.append(redis_us)
                p50s.append(delays_ms[len(delays_ms) // 2])
                p99s.append(delays_ms[len(delays_ms) * 99 // 100])
            name = f"{count:,} reader{'s' * (count > 1)}"
            yield _point(group, name, "Redis's CPU, a token and all its readers", "µs", costs, count)
            judged = count == _READ_STREAMS
            yield _point(group, name, "append to reader, p50", "ms", p50s, count, 1.0 if judged else 0.0)
            yield _point(group, name, "append to reader, p99", "ms", p99s, count, 5.0 if judged else 0.0)


def _followed(client: redis.Redis, readers: Child, count: int, steps: int) -> tuple[float, list[float]]:
    """Redis's CPU time per token in microseconds, and the readers' delays, sorted."""
    writer = Fenced(client, _READ_STREAMS)
    streams = [keys.stream(attempt.request_id) for attempt in writer.attempts]
    where = client.connection_pool.connection_kwargs
    readers.ask(do="connect", host=where["host"], port=where["port"], streams=streams, readers=count)
    followed = min(count, _READ_STREAMS)
    readers.send(do="read", tokens=steps)
    began_us = _cpu_us(client)
    for _ in range(steps):
        due = time.perf_counter() + _STEP_S
        writer.step(1)
        time.sleep(max(due - time.perf_counter(), 0))
    spent_us = _cpu_us(client) - began_us
    delays: list[float] = readers.read()["delays_ms"]
    if len(delays) < followed * steps:
        raise RuntimeError(f"{len(delays)} tokens came to {count} readers")
    return spent_us / (steps * _READ_STREAMS), delays


def _cost(client: redis.Redis, writer: Fenced, steps: int) -> tuple[float, float]:
    """Microseconds per token over `steps` steps: the writer's time, and Redis's CPU time."""
    tokens = steps * writer.streams
    began_us, began = _cpu_us(client), time.perf_counter()
    for _ in range(steps):
        writer.step(1)
    seconds = time.perf_counter() - began
    return seconds * 1e6 / tokens, (_cpu_us(client) - began_us) / tokens


def _cpu_us(client: redis.Redis) -> float:
    used = client.info("cpu")
    return float(used["used_cpu_user"] + used["used_cpu_sys"]) * 1e6


def _point(
    group: str, name: str, line: str, unit: str, values: Sequence[float], at: float, most: float = 0.0
) -> Measurement:
    """`most`: the target, if it isn't 0."""
    title = f"{name}: {line}"
    return Measurement(group, title, unit, tuple(values), "≤" if most else "", most, line=line, at=at)
