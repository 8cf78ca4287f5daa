"""HTTP's overhead over Redis, the delivery delay for 1,000 readers, and leaks after disconnects.

Load for the delay: 32 active streams at a CPU engine's pace, with the readers distributed over them. One worker appends
the tokens of all its streams in one pipeline, so all readers have an event due at the same time, and the median
reader waits for half of the sends by construction. Four workers of eight streams each, with independent steps, have
the same streams, readers and events per second, but a quarter of them due at a time; and two gateways share one
worker's readers. All are measured against one bound.
If the machine falls behind, steps are read together and an event carries several tokens: then the time per token is
less meaningful than the delay.
"""

from __future__ import annotations

import random
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from benchmarks.children import Child
from benchmarks.contenders import Arena
from benchmarks.gateways import GatewayProcess, leave_somewhere
from benchmarks.pacing import Pace, submitted
from benchmarks.report import Measurement
from benchmarks.waves import Wave, prompt_of
from tests.redis_servers import RedisServer
from tests.waiting import wait_until
from tokenrelay.shared.wire.entries import State, text

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from redis import Redis
    from transformers import PreTrainedTokenizerBase

    from benchmarks.contenders import Contender
    from benchmarks.options import BenchOptions
    from benchmarks.waves import Outcome

GROUP: Final = "over HTTP"
GATEWAY, CONSUMERS, SERVE = "gateway", "Redis consumers", "transformers serve"
_STREAMS: Final = 32
_BODY: Final = b'{"model": "weather", "messages": [{"role": "user", "content": "x"}], "stream": true}'


def measure(options: BenchOptions) -> Iterator[Measurement]:
    yield from _rates(options)
    for crowd in _crowds(options):
        yield from _delays(options, crowd)
    yield _leaks(options)


def _rates(options: BenchOptions) -> Iterator[Measurement]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(options.model)
    count, lengths, new_tokens = (2, (8,), 8) if options.quick else (_STREAMS, (40, 256), 64)
    with Arena(options) as arena:
        contenders: dict[str, Contender] = {CONSUMERS: arena.pipeline(), GATEWAY: arena.gateway()}
        if serve := arena.transformers_serve():
            contenders[SERVE] = serve
        else:
            print("transformers serve isn't installed, so it's left out: pip install 'transformers[serving]'")
        for length in lengths:
            found: dict[str, list[Outcome]] = {name: [] for name in contenders}
            for number in range(options.rounds + 1):
                for name in contenders if number % 2 else reversed(contenders):
                    outcome = contenders[name].run(_wave(tokenizer, count, length, new_tokens, number))
                    if number:  # round 0 warms up
                        found[name].append(outcome)
            yield from _compared(found, length, count)


def _wave(tokenizer: PreTrainedTokenizerBase, count: int, length: int, new_tokens: int, number: int) -> Wave:
    seeds = range(number * 1000, number * 1000 + count)
    return Wave(tuple(prompt_of(tokenizer, length, seed) for seed in seeds), new_tokens, 0.0, seed=number)


def _compared(found: dict[str, list[Outcome]], length: int, count: int) -> Iterator[Measurement]:
    shape = f"{count} at once, prompts of {length}"
    ours = found[GATEWAY]
    for name, outcomes in found.items():
        yield Measurement(GROUP, f"{name}, {shape}", "tokens/s", tuple(outcome.rate for outcome in outcomes))
    consumers = tuple(ours.rate / theirs.rate for ours, theirs in zip(ours, found[CONSUMERS], strict=True))
    yield Measurement(GROUP, f"gateway ÷ consumers, {shape}", "×", consumers, "≥", 0.95)
    if SERVE in found:
        pairs = list(zip(ours, found[SERVE], strict=True))
        rates = tuple(ours.rate / theirs.rate for ours, theirs in pairs)
        yield Measurement(GROUP, f"gateway ÷ serve, {shape}", "×", rates, "≥", 1.05 if length < 256 else 2.0)
        if length < 256:
            firsts = tuple(ours.ttft_ms / theirs.ttft_ms for ours, theirs in pairs)
            yield Measurement(GROUP, f"TTFT p50, gateway ÷ serve, {shape}", "×", firsts, "≤", 0.8)


@dataclass(frozen=True, slots=True)
class _Crowd:
    """A setup: `readers` of 32 streams, written by so many workers, at so many gateways."""

    readers: int
    workers: int
    tokens: int
    pace: float
    gateways: int = 1

    def __str__(self) -> str:
        note = f"{self.readers} readers, {self.workers} worker{'s' * (self.workers > 1)}"
        return note if self.gateways == 1 else f"{note}, {self.gateways} gateways"


@dataclass(frozen=True, slots=True)
class _Reading:
    delays_ms: list[float]
    """Delays of all tokens at all readers, sorted."""
    cpu_us: float
    """The gateways' CPU time per event."""


def _crowds(options: BenchOptions) -> list[_Crowd]:
    if options.quick:
        return [_Crowd(16, 2, 5, 20.0, gateways=2)]
    crowds = ((1000, 1, 1), (1000, 1, 2), (1000, 4, 1), (2000, 1, 1))
    return [_Crowd(readers, workers, 100, 10.0, gateways) for readers, workers, gateways in crowds]


def _delays(options: BenchOptions, crowd: _Crowd) -> Iterator[Measurement]:
    found = []
    for number in range(options.rounds):
        folder = options.folder / f"http{crowd.readers}-{crowd.workers}-{crowd.gateways}-{number}"
        folder.mkdir()
        found.append(_read_by(crowd, folder))
    expected = crowd.tokens * crowd.readers
    lost = sum(expected - len(reading.delays_ms) for reading in found)
    note = f"{_STREAMS} streams, {crowd.pace:g} steps/s; {lost} of {expected * options.rounds:,} tokens missing"
    bound: Literal["≤", ""] = "≤" if crowd.readers == 1000 else ""
    for percent, target in ((50, 5.0), (99, 25.0)):
        values = tuple(reading.delays_ms[len(reading.delays_ms) * percent // 100] for reading in found)
        yield Measurement(GROUP, f"append to SSE byte, {crowd}, p{percent}", "ms", values, bound, target, note)
    spent = tuple(reading.cpu_us for reading in found)
    yield Measurement(GROUP, f"a gateway's CPU time, {crowd}", "µs/token", spent, note="per reader, with their ends")


def _read_by(crowd: _Crowd, folder: Path) -> _Reading:
    server, log, read = RedisServer(folder), folder / "log.txt", dict[str, Any]()
    try:
        with (
            Child("benchmarks.sse_readers", log=log) as clients,
            ExitStack() as others,
        ):
            gateways = [others.enter_context(GatewayProcess(server.url, log)) for _ in range(crowd.gateways)]
            engines = [others.enter_context(Child("benchmarks.pacing", log=log)) for _ in range(crowd.workers)]
            ids = submitted(server.url, Pace(_STREAMS, crowd.tokens, crowd.pace))
            for host, port in (gateway.address for gateway in gateways):
                readers = crowd.readers // crowd.gateways
                clients.ask(do="connect", host=host, port=port, request_ids=ids, readers=readers)
            began = sum(gateway.cpu_s for gateway in gateways)
            reading = threading.Thread(target=lambda: read.update(clients.ask(do="read", until_ended=crowd.readers)))
            reading.start()
            with ThreadPoolExecutor(crowd.workers) as pool:
                list(pool.map(lambda number: _write(engines[number], server.url, crowd, number), range(crowd.workers)))
            reading.join()
            cpu_us = (sum(gateway.cpu_s for gateway in gateways) - began) * 1e6
    finally:
        server.stop()
    delays: list[float] = read["delays_ms"]
    return _Reading(delays, cpu_us / len(delays))


def _write(engine: Child, url: str, crowd: _Crowd, number: int) -> None:
    """Run a worker that writes its share of the streams."""
    share, phase = _STREAMS // crowd.workers, number / crowd.workers
    engine.ask(url=url, streams=share, tokens=crowd.tokens, steps_a_second=crowd.pace, phase=phase)


def _leaks(options: BenchOptions) -> Measurement:
    """Open requests and remaining connections after the grace period."""
    count, draw = 20 if options.quick else 500, random.Random(7)
    folder = options.folder / "leaks"
    folder.mkdir()
    server = RedisServer(folder)
    try:
        with (
            GatewayProcess(server.url, options.folder / "log.txt", disconnect_grace_s="0.5") as gateway,
            server.client() as client,
        ):
            for _ in range(count):
                leave_somewhere(gateway.address, _BODY, draw)
            try:
                wait_until(lambda: not _unended(client) and not gateway.connections, 30)
            except AssertionError:
                print(f"{_unended(client)} requests and {gateway.connections} connections are left")
            left, asked = _unended(client) + gateway.connections, len(client.keys("tokenrelay:{*}:request"))
    finally:
        server.stop()
    note = f"{count} random disconnects, {asked} requests had been accepted"
    return Measurement(GROUP, "leaked requests and connections", "", (float(left),), "≤", 0.0, note)


def _unended(client: Redis) -> int:
    states = [client.hget(key, "state") for key in client.keys("tokenrelay:{*}:request")]
    return sum(not State(text(state)).terminal for state in states)
