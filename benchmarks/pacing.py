"""Does publishing delay the engine? A counting engine at a fixed pace, with and without the real worker around it.

The engine steps in its own thread, as the real one does, and needs the interpreter at every step. The delay is how late
it gets it, with and without publishing. A token's wait is its entry's `at_us` minus its step's time.
"""

from __future__ import annotations

import argparse
import math
import statistics
import threading
import time
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final

from pydantic import SecretStr

from benchmarks.children import Child, Message, answer_lines
from benchmarks.report import Measurement
from tests.engines import ALL_OPTIONS
from tests.redis_servers import RedisServer
from tests.workers import MODEL, VOCABULARY, served
from tokenrelay.producer import Producer
from tokenrelay.shared.redis.connections import connect
from tokenrelay.shared.settings import WorkerSettings
from tokenrelay.shared.wire import keys
from tokenrelay.worker.engine.contract import Capabilities, EngineOutput, EngineOutputs, EngineRequest
from tokenrelay.worker.engine.output_queue import OutputQueue
from tokenrelay.worker.serving.model import tune_interpreter
from tokenrelay.worker.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.options import BenchOptions
    from tokenrelay.worker.engine.contract import Deliver

GROUP: Final = "a counting engine at a fixed pace"


@dataclass(slots=True)
class _Stream:
    request: EngineRequest
    first_step: int = 0
    given: int = 0


@dataclass(frozen=True, slots=True)
class Pace:
    """`streams` at once, each given `tokens`, one a step. Engines of other `phase`s, which are parts of a step's time,
    step at other times."""

    streams: int
    tokens: int
    steps_a_second: float
    phase: float | None = None


@dataclass(slots=True)
class PacedEngine:
    """`Engine` that gives a token to each of its streams every so often; it starts once all of them are there."""

    pace: Pace
    stepped_at: list[float] = field(default_factory=list)
    """Wall clock of each step."""
    late_s: list[float] = field(default_factory=list)
    """How long after its time each step's tokens were out."""
    _streams: dict[str, _Stream] = field(default_factory=dict)
    _filled: threading.Event = field(default_factory=threading.Event)

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(self.pace.streams, 1 << 20, VOCABULARY + 1, ALL_OPTIONS, device="none", dtype="none")

    @property
    def progress(self) -> int:
        return len(self.stepped_at)

    def prepare(self) -> None:
        """No warm-up needed."""

    def start(self, deliver: Deliver) -> None:
        threading.Thread(target=self._steps, args=(deliver,), name="engine", daemon=True).start()

    def stop(self) -> None:
        """The steps end on their own."""

    def add(self, request: EngineRequest) -> None:
        self._streams[request.engine_id] = _Stream(request)
        if len(self._streams) == self.pace.streams:
            self._filled.set()

    def cancel(self, engine_id: str) -> None:
        """Ended streams still count: all end together."""

    def cache_use(self) -> None:
        """No KV cache."""

    def _steps(self, deliver: Deliver) -> None:
        self._filled.wait()
        due = self._begin_at()
        for number in range(self.pace.tokens):
            due += 1 / self.pace.steps_a_second
            time.sleep(max(due - time.perf_counter(), 0))
            self.stepped_at.append(time.time())
            token = number % VOCABULARY
            end: Any = "length" if number == self.pace.tokens - 1 else None
            deliver(EngineOutputs(tuple(EngineOutput(engine_id, (token,), end) for engine_id in self._streams)))
            self.late_s.append(time.perf_counter() - due)

    def _begin_at(self) -> float:
        """Now; with a phase, its next time on the clock that the processes of a machine share."""
        now, rate = time.perf_counter(), self.pace.steps_a_second
        return now if self.pace.phase is None else (math.ceil(now * rate) + self.pace.phase) / rate


def paced_by_worker(url: str, pace: Pace) -> PacedEngine:
    """Run the queued requests through the real worker's loop."""
    engine = PacedEngine(pace)
    settings = WorkerSettings(redis_url=SecretStr(url), slots=pace.streams)
    worker = Worker(settings, served(engine), connection=connect(url))
    tune_interpreter()  # as `serve` does after loading a model
    worker.work(burst=True)
    return engine


def paced_alone(pace: Pace) -> PacedEngine:
    """The same engine, with its tokens discarded."""
    engine = PacedEngine(pace)
    outputs = OutputQueue()
    engine.start(outputs.deliver)
    for number in range(pace.streams):
        engine.add(EngineRequest(str(number), (1,), (), pace.tokens, None, ignore_eos=True))  # type: ignore[arg-type]
    while len(engine.late_s) < pace.tokens:
        outputs.get(0.1)
    return engine


def measure(options: BenchOptions) -> Iterator[Measurement]:
    pace = Pace(8, 20, 50.0) if options.quick else Pace(256, 6000, 100.0)
    p99s: list[tuple[float, float]] = []
    waits: list[float] = []
    for number in range(options.rounds):
        log = options.folder / "pacing.txt"
        with Child("benchmarks.pacing", log=log) as child:
            alone = child.ask(url=None, **asdict(pace))
        folder = options.folder / f"pacing{number}"
        folder.mkdir()
        server = RedisServer(folder)
        try:
            with Child("benchmarks.pacing", log=log) as child:
                ids = submitted(server.url, pace)
                published = child.ask(url=server.url, **asdict(pace))
            p99s.append((_p99(alone["late_s"]) * 1000, _p99(published["late_s"]) * 1000))
            waits.append(_longest_wait_ms(server.url, ids, published["stepped_at"]))
        finally:
            server.stop()
    note = f"{pace.streams} streams, {pace.steps_a_second:g} steps/s, {pace.tokens / pace.steps_a_second:g} s"
    bare = f"alone {statistics.median(p99 for p99, _ in p99s):.2f} ms, {note}"
    delays = tuple(max(published - alone, 0) for alone, published in p99s)
    yield Measurement(GROUP, "publishing delays a step, p99", "ms", delays, "≤", 1.0, bare)
    # A bound for every token: one round with a longer wait breaks it.
    yield Measurement(GROUP, "longest wait of a token", "ms", tuple(waits), "≤", 50.0, note, judged_by="worst")


def submitted(url: str, pace: Pace) -> list[str]:
    with Producer(url) as producer:
        chosen = {"model": MODEL, "max_new_tokens": pace.tokens, "ignore_eos": True}
        items: Any = [{"prompt": "w1 w2 w3", **chosen} for _ in range(pace.streams)]
        return [generation.request_id for generation in producer.submit_many(items)]


def _longest_wait_ms(url: str, ids: list[str], stepped_at: list[float]) -> float:
    longest = 0.0
    with connect(url) as client:
        for request_id in ids:
            entries: Any = client.xrange(keys.stream(request_id), "1-0", f"{len(stepped_at)}-0")
            tokens = [fields for _, fields in entries if b"token" in fields]
            if len(tokens) != len(stepped_at):
                raise RuntimeError(f"request {request_id} has {len(tokens)} tokens of {len(stepped_at)}")
            waits = (int(fields[b"at_us"]) / 1e6 - at for fields, at in zip(tokens, stepped_at, strict=True))
            longest = max(longest, *waits)
    return longest * 1000


def _p99(values: list[float]) -> float:
    return sorted(values)[int(len(values) * 0.99)]


def answer(message: Message) -> Message:
    pace = Pace(message["streams"], message["tokens"], message["steps_a_second"], message.get("phase"))
    engine = paced_by_worker(message["url"], pace) if message["url"] else paced_alone(pace)
    return {"late_s": engine.late_s, "stepped_at": engine.stepped_at}


if __name__ == "__main__":
    argparse.ArgumentParser().parse_args()
    answer_lines(answer)
