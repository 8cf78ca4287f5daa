"""The token plane alone: the publisher with synthetic tokens against plain pipelined XADD."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Final

from benchmarks.report import Measurement
from tests.redis_servers import RedisServer
from tests.token_plane import reply_word
from tokenrelay.shared.redis.batches import Pipeline
from tokenrelay.shared.redis.commands import Batch, Call
from tokenrelay.shared.store.jobs import Execution
from tokenrelay.shared.store.scripts import script
from tokenrelay.shared.wire import keys
from tokenrelay.worker.core.attempts import Attempt
from tokenrelay.worker.core.closings import Closings
from tokenrelay.worker.core.figures import Figures
from tokenrelay.worker.core.publisher import Publisher

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import redis

    from benchmarks.options import BenchOptions

GROUP: Final = "the token plane alone"
TUNED: Final = ("--stream-node-max-bytes", "2048", "--stream-node-max-entries", "0")
_HOUR_MS: Final = 3_600_000
_TEXTS: Final = (" the", " weather", ",", " is", " sunny", " and", " warm", "ing", " in", " morning", ".", " of")
_TOKENS_A_STREAM: Final = 512
_TURNS: Final = 6
_FED: Final = 0.65
"""Fraction of pipelined XADD's rate: more than one token per call reaches."""


@dataclass(slots=True)
class Fenced:
    """Streams written as by a worker."""

    client: redis.Redis
    streams: int
    name: str = "publisher"
    attempts: list[Attempt] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.attempts = claimed(Pipeline(self.client), self.streams)
        self._held = {attempt.fence: attempt for attempt in self.attempts}
        self._publisher = Publisher(Pipeline(self.client), 6000, Closings(SimpleQueue()), Figures())

    _held: dict[str, Attempt] = field(init=False)
    _publisher: Publisher = field(init=False)

    def step(self, tokens: int) -> None:
        """Append `count` tokens to every stream."""
        self.give(tokens)
        self.publish()
        if self.unpublished:
            raise RuntimeError("Redis didn't take a step")

    def give(self, tokens: int) -> None:
        for attempt in self.attempts:
            for _ in range(tokens):
                number = len(attempt.tokens)
                attempt.tokens.append((_TEXTS[number % len(_TEXTS)], 10_000 + number % 30_000))

    def publish(self) -> None:
        self._publisher.publish(self._held)

    @property
    def unpublished(self) -> int:
        """Streams with unacknowledged tokens."""
        return sum(attempt.unpublished for attempt in self.attempts)


@dataclass(slots=True)
class Raw:
    """The same entries by pipelined XADD, without fence, lease or index check."""

    client: redis.Redis
    streams: int
    name: str = "pipelined XADD"
    count: int = 0

    def step(self, tokens: int) -> None:
        pipeline = self.client.pipeline(transaction=False)
        for stream in range(self.streams):
            for number in range(self.count, self.count + tokens):
                entry: Any = {"text": _TEXTS[number % len(_TEXTS)], "token": 10_000 + number % 30_000}
                pipeline.xadd(f"raw:{stream}", {**entry, "at_us": time.time_ns() // 1000})
        self.count += tokens
        pipeline.execute()


def claimed(pipeline: Pipeline, count: int) -> list[Attempt]:
    """Requests that this process owns."""
    executions = [Execution(keys.new_request_id(), "bench", "bench", f"x{number}") for number in range(count)]
    pairs = [(keys.request(execution.job_id), keys.stream(execution.job_id)) for execution in executions]
    creates: Batch = [
        Call(script("create"), pair, ("body", _HOUR_MS, _HOUR_MS, "", "", "bench", "{}")) for pair in pairs
    ]
    claims: Batch = []
    for pair, execution in zip(pairs, executions, strict=True):
        model = ("bench", "bench", "fingerprint", 3, 500, 1, 3, "[1, 2, 3]")
        claims.append(Call(script("claim"), pair, (execution.execution_id, _HOUR_MS, *model)))
    replies = pipeline.run(creates) + pipeline.run(claims)
    if any(reply_word(reply) != "OK" for reply in replies):
        raise RuntimeError("the requests couldn't be claimed")
    fences = (reply[1].decode() for reply in replies[count:])
    return [Attempt(execution, fence, 1, 60) for execution, fence in zip(executions, fences, strict=True)]


def measure(options: BenchOptions) -> Iterator[Measurement]:
    folder = options.folder / "plane"
    folder.mkdir()
    server = RedisServer(folder, *TUNED)
    try:
        with server.client() as client:
            for tokens, target in ((1, 0.6), (2, 0.8)):
                yield from _against_raw(client, tokens, target, options)
            yield from _fed(client, options)
            yield from _flatness(client, options)
            yield _memory(client)
    finally:
        server.stop()


def _against_raw(client: redis.Redis, tokens: int, target: float, options: BenchOptions) -> Iterator[Measurement]:
    rounds = []
    for _ in range(options.rounds):
        client.flushall()
        rounds.append(_rates([Fenced(client, 32), Raw(client, 32)], tokens, 100 if options.quick else 6400))
    ours, theirs = zip(*rounds, strict=True)
    kind = f"32 streams, {tokens} a call"
    yield Measurement(GROUP, f"publisher, {kind}", "tokens/s", ours)
    yield Measurement(GROUP, f"pipelined XADD, {kind}", "tokens/s", theirs)
    ratios = tuple(mine / yours for mine, yours in rounds)
    name = f"publisher ÷ pipelined XADD, {tokens} a call"
    yield Measurement(GROUP, name, "×", ratios, "≥", target)


def _fed(client: redis.Redis, options: BenchOptions) -> Iterator[Measurement]:
    """An engine faster than one token per call: tokens generated while a pipeline is in flight go with the next one."""
    ratios, p50s, p99s, calls = [], [], [], []
    for _ in range(options.rounds):
        client.flushall()
        (raw,) = _rates([Raw(client, 32)], 1, 100 if options.quick else 6400)
        feeding = Feeding(Fenced(client, 32), _FED * raw, 0.2 if options.quick else 5.0)
        feeding.run()
        waits_ms = feeding.waits_ms()
        ratios.append(feeding.taken / raw)
        calls.append(feeding.tokens_a_call)
        p50s.append(waits_ms[len(waits_ms) // 2])
        p99s.append(waits_ms[len(waits_ms) * 99 // 100])
    fed = f"fed at {_FED:g} of XADD's rate"
    note = "keeps up: it takes no more than it's given"
    yield Measurement(GROUP, f"publisher ÷ pipelined XADD, {fed}", "×", tuple(ratios), "≥", 0.6, note)
    yield Measurement(GROUP, f"tokens a call, {fed}", "", tuple(calls))
    yield Measurement(GROUP, f"wait of a token, {fed}, p50", "ms", tuple(p50s), note="from the engine to its entry")
    yield Measurement(GROUP, f"wait of a token, {fed}, p99", "ms", tuple(p99s))


@dataclass(slots=True)
class Feeding:
    """Streams with one token each at a fixed pace; the publisher is woken as in a worker and sends what is there."""

    fenced: Fenced
    rate: float
    """Total tokens per second."""
    seconds: float
    taken: float = 0.0
    """Acknowledged tokens per second, from the first step to the last acknowledgement."""
    tokens_a_call: float = 0.0
    _given_at: list[float] = field(default_factory=list)
    """Wall clock of each step."""
    _given: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        """Feed and publish. Raises RuntimeError if the publisher can't keep up."""
        self.fenced.step(1)  # creates its stream, and loads the scripts
        engine = threading.Thread(target=self._give)
        began, calls = time.perf_counter(), self._calls()
        engine.start()
        while engine.is_alive() or self.fenced.unpublished:
            self._given.wait(0.1)
            self._given.clear()
            self.fenced.publish()
            if time.perf_counter() - began > 2 * self.seconds + 10:
                raise RuntimeError("the publisher doesn't keep up")
        tokens = len(self._given_at) * self.fenced.streams
        self.taken = tokens / (time.perf_counter() - began)
        self.tokens_a_call = tokens / (self._calls() - calls)

    def _give(self) -> None:
        due, pause = time.perf_counter(), self.fenced.streams / self.rate
        for _ in range(int(self.seconds / pause)):
            due += pause
            time.sleep(max(due - time.perf_counter(), 0))
            self._given_at.append(time.time())
            self.fenced.give(1)
            self._given.set()

    def _calls(self) -> int:
        return int(self.fenced.client.info("commandstats")["cmdstat_evalsha"]["calls"])

    def waits_ms(self) -> list[float]:
        """Delays of all tokens from step to entry, sorted."""
        waits = []
        for attempt in self.fenced.attempts:
            # After the first, which `run` wrote.
            entries: Any = self.fenced.client.xrange(keys.stream(attempt.request_id), "2-0")
            at_us = [int(fields[b"at_us"]) for _, fields in entries]
            waits += [at / 1000 - given * 1000 for at, given in zip(at_us, self._given_at, strict=True)]
        return sorted(waits)


def _flatness(client: redis.Redis, options: BenchOptions) -> Iterator[Measurement]:
    """The cost of a token with many live streams."""
    counts = (4, 8) if options.quick else (32, 256, 2000)
    rounds = []
    for _ in range(options.rounds):
        client.flushall()
        writers = [Fenced(client, count) for count in counts]
        rounds.append(_rates(writers, 1, 100 if options.quick else 12_000))
    for count, values in zip(counts, zip(*rounds, strict=True), strict=True):
        yield Measurement(GROUP, f"publisher, {count} live streams", "tokens/s", values)
    flat = tuple(rates[-1] / rates[0] for rates in rounds)
    yield Measurement(GROUP, f"{counts[-1]} ÷ {counts[0]} live streams", "×", flat, "≥", 0.8)


def _memory(client: redis.Redis) -> Measurement:
    client.flushall()
    fenced = Fenced(client, 8)
    for _ in range(_TOKENS_A_STREAM):
        fenced.step(1)
    streams: Sequence[str] = [keys.stream(attempt.request_id) for attempt in fenced.attempts]
    sizes = tuple((client.memory_usage(stream, samples=0) or 0) / _TOKENS_A_STREAM for stream in streams)
    return Measurement(
        GROUP, "a token in Redis", "bytes", sizes, "≤", 45.0, f"{_TOKENS_A_STREAM} a stream, {' '.join(TUNED)}"
    )


def _rates(writers: Sequence[Fenced | Raw], tokens: int, budget: int) -> tuple[float, ...]:
    """Tokens per second of each, in short alternating turns, so that a slower machine affects all equally."""
    spent = [0.0] * len(writers)
    written = [0] * len(writers)
    for turn in range(_TURNS + 1):
        for number, writer in enumerate(writers):
            steps = max(budget // _TURNS // writer.streams // tokens, 1)
            began = time.perf_counter()
            for _ in range(steps):
                writer.step(tokens)
            if turn:  # the first one creates streams and loads scripts
                spent[number] += time.perf_counter() - began
                written[number] += steps * tokens * writer.streams
    return tuple(count / seconds for count, seconds in zip(written, spent, strict=True))
