"""Memory scaling: a gateway by readers, by followed tokens and by client churn; a worker by requests in flight.

Resident sizes of separate processes: a line's first point is the process's base size.
"""

from __future__ import annotations

import socket
import threading
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Final

import psutil

from benchmarks.children import Child
from benchmarks.gateways import GatewayProcess
from benchmarks.pacing import Pace, submitted
from benchmarks.report import Measurement
from tests.redis_servers import RedisServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from benchmarks.options import BenchOptions

GROUP: Final = "growth: memory"
READERS: Final = (1, 100, 320, 1000, 2000)
TOKENS: Final = (10, 100, 320, 1000, 3200, 8192)
VISITS: Final = (100, 1000, 3200, 10_000)
REQUESTS: Final = (1, 32, 100, 320, 1000)
_STREAMS: Final = 32
_STEPS_A_SECOND: Final = 200.0
_TOKENS_A_REQUEST: Final = 200


def measure(options: BenchOptions) -> Iterator[Measurement]:
    yield from _readers(options)
    yield from _tokens(options)
    yield from _visits(options)
    yield from _requests(options)


@contextmanager
def _gateway(options: BenchOptions, name: str) -> Iterator[tuple[RedisServer, GatewayProcess]]:
    folder = options.folder / f"memory-{name}"
    folder.mkdir()
    server = RedisServer(folder)
    try:
        with GatewayProcess(server.url, folder / "log.txt") as gateway:
            yield server, gateway
    finally:
        server.stop()


def _readers(options: BenchOptions) -> Iterator[Measurement]:
    """Readers of 32 streams, each with its own connection. Measured once: a process only grows."""
    counts = READERS[:2] if options.quick else READERS
    with (
        _gateway(options, "readers") as (server, gateway),
        Child("benchmarks.sse_readers", log=options.folder / "log.txt") as clients,
    ):
        ids = submitted(server.url, Pace(_STREAMS, 8, 1.0))
        host, port = gateway.address
        for before, count in zip((0, *counts), counts, strict=False):
            clients.ask(do="connect", host=host, port=port, request_ids=ids, readers=count - before)
            yield _point("a gateway", f"{count:,} readers", gateway.resident_mib(), count)


def _tokens(options: BenchOptions) -> Iterator[Measurement]:
    """32 streams of so many tokens, each followed by one reader, in a new gateway each time."""
    for length in TOKENS[:2] if options.quick else TOKENS:
        pace = Pace(_STREAMS, length, _STEPS_A_SECOND)
        with ExitStack() as stack:
            server, gateway = stack.enter_context(_gateway(options, f"tokens{length}"))
            log = options.folder / "log.txt"
            clients = stack.enter_context(Child("benchmarks.sse_readers", log=log))
            worker = stack.enter_context(Child("benchmarks.pacing", log=log))
            ids = submitted(server.url, pace)
            host, port = gateway.address
            clients.ask(do="connect", host=host, port=port, request_ids=ids, readers=_STREAMS)
            clients.send(do="read", until_ended=_STREAMS)
            sizes = _Highest(gateway.resident_mib)
            worker.ask(url=server.url, **asdict(pace))
            clients.read()
            yield _point("a gateway", f"{length:,} tokens in each of 32 streams", sizes.stop(), length)


class _Highest:
    """The process's maximum size while it runs: a stream's memory is freed when it ends."""

    def __init__(self, size: Callable[[], float]) -> None:
        self._size, self._mib, self._stopped = size, 0.0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._stopped.wait(0.05):
            self._mib = max(self._mib, self._size())

    def stop(self) -> float:
        self._stopped.set()
        self._thread.join()
        return max(self._mib, self._size())


def _visits(options: BenchOptions) -> Iterator[Measurement]:
    """Clients that start reading a stream and disconnect, one after another."""
    counts = VISITS[:2] if options.quick else VISITS
    with _gateway(options, "visits") as (server, gateway):
        (request_id,) = submitted(server.url, Pace(1, 8, 1.0))
        for before, count in zip((0, *counts), counts, strict=False):
            for _ in range(count - before):
                _visit(gateway.address, request_id)
            yield _point("a gateway", f"{count:,} readers that came and went", gateway.resident_mib(), count)


def _visit(address: tuple[str, int], request_id: str) -> None:
    with socket.create_connection(address, timeout=30) as connection:
        connection.sendall(f"GET /requests/{request_id}/events HTTP/1.1\r\nHost: gateway\r\n\r\n".encode())
        connection.recv(65_536)


def _requests(options: BenchOptions) -> Iterator[Measurement]:
    """A worker without a model with so many requests in flight, 200 tokens each; a new process each time."""
    for count in REQUESTS[:2] if options.quick else REQUESTS:
        folder = options.folder / f"memory-requests{count}"
        folder.mkdir()
        yield _point("a worker", f"{count:,} requests in flight", _worker_mib(folder, count, options.quick), count)


def _worker_mib(folder: Path, count: int, quick: bool) -> float:
    pace = Pace(count, 5 if quick else _TOKENS_A_REQUEST, 20.0)
    server = RedisServer(folder)
    try:
        with Child("benchmarks.pacing", log=folder / "log.txt") as worker:
            submitted(server.url, pace)
            process = psutil.Process(worker.pid)
            sizes = _Highest(lambda: float(process.memory_info().rss) / (1 << 20))
            worker.ask(url=server.url, **asdict(pace))
            return sizes.stop()
    finally:
        server.stop()


def _point(whose: str, amount: str, mib: float, at: float) -> Measurement:
    what = amount.partition(" ")[2]
    if at == 1:
        amount = amount.replace("readers", "reader").replace("requests", "request")
    return Measurement(GROUP, f"{whose}: {amount}", "MiB", (mib,), line=f"{whose}, {what}", at=at)
