"""`tokenrelay demo`: two requests through Redis, RQ, a worker and the bundled model, observed at both ends.

The left column shows the answer as a Python consumer receives it. The right column shows the stream's entries as
redis-cli reads them, with the request's state after each: `in_progress` proves that the entry was streamed.
"""

from __future__ import annotations

import json
import threading
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

from tokenrelay.cli.client.trace import write_trace
from tokenrelay.cli.demo.observers import redis_cli, redis_py, watch
from tokenrelay.cli.terminal.output import write_line
from tokenrelay.producer import Producer
from tokenrelay.producer._core.drivers import Driver
from tokenrelay.producer.local import LocalRedis, LocalWorker
from tokenrelay.shared.redis.connections import connect

if TYPE_CHECKING:
    from tokenrelay.cli.demo.observers import ObservedEntry, Run
    from tokenrelay.producer import Generation

QUESTIONS: Final = (
    ("What is the weather today?", "a question of the training data"),
    ("Will it rain in Paris tomorrow?", "a question that isn't in the training data"),
)
_LEFT: Final = 34
_OPEN: Final = ("queued", "in_progress")
_SHOWN: Final = ("attempt", "finish_reason")


def run_demo() -> None:
    """Run both requests on a temporary Redis and worker."""
    with ExitStack() as stack:
        redis = stack.enter_context(LocalRedis())
        write_line(f"Redis: {redis.kind}, at {redis.url}")
        began = time.monotonic()
        write_line("Worker: loading the bundled model …")
        stack.enter_context(LocalWorker(redis.url))
        write_line(f"Worker: ready after {time.monotonic() - began:.1f} s")
        if not redis.cli:
            write_line("redis-cli: none found; redis-py reads the stream instead")
        client = stack.enter_context(connect(redis.url))
        run = stack.enter_context(redis_cli(redis.cli)) if redis.cli else redis_py(client)
        run("PING")  # wait until redis-cli has started
        producer = stack.enter_context(Producer(url=redis.url, streams_url=redis.url))
        generations = []
        for question, what in QUESTIONS:
            write_line(f"\n{question}  ({what})")
            generations.append(producer.submit(question, temperature=0.0))
            _Showing(generations[-1], "redis-cli" if redis.cli else "redis-py").show(run)
        write_line(f"\n$ tokenrelay trace {generations[0].request_id}")
        write_trace(Driver(client), generations[0].request_id)


class _Showing:
    """One answer: a thread consumes it, the caller's observes the stream and prints both."""

    def __init__(self, generation: Generation, reader: str) -> None:
        self._generation = generation
        self._reader = reader
        self._texts: list[str] = []
        self._consumed = False
        self._news = threading.Condition()

    def show(self, run: Run) -> None:
        threading.Thread(target=self._consume, daemon=True).start()
        write_line(f"{'a Python consumer has':{_LEFT}}  {f'{self._reader} reads, entry by entry':32} the request is")
        open_tokens = 0
        for seen in watch(run, self._generation.request_id):
            write_line(f"{self._left(seen):{_LEFT}}  {_right(seen)}")
            open_tokens += "token" in seen.fields and seen.state in _OPEN
        self._sum_up(open_tokens)

    def _consume(self) -> None:
        try:
            for token in self._generation:
                with self._news:
                    self._texts.append(token.text)
                    self._news.notify()
        finally:
            with self._news:
                self._consumed = True
                self._news.notify()

    def _left(self, seen: ObservedEntry) -> str:
        """The consumer's text up to this entry, truncated on the left."""
        index = int(seen.entry_id.partition("-")[0])
        with self._news:
            self._news.wait_for(lambda: self._consumed or len(self._texts) >= index)
            answer = "".join(self._texts[:index])
        return answer if len(answer) <= _LEFT else f"…{answer[1 - _LEFT :]}"

    def _sum_up(self, open_tokens: int) -> None:
        answer = self._generation.result()
        ttft_ms, total_ms = (1000 * (seconds or 0) for seconds in (answer.timings.ttft_s, answer.timings.total_s))
        write_line(f"\n  {answer.text}\n")
        write_line(f"  {len(answer.tokens)} tokens: the first after {ttft_ms:.0f} ms, all after {total_ms:.0f} ms.")
        write_line(f"  {self._reader} read {open_tokens} of them while the request was in progress.")


def _right(seen: ObservedEntry) -> str:
    fields = seen.fields
    if "token" in fields:
        what = f"text {json.dumps(fields['text'], ensure_ascii=False)} token {fields['token']}"
    else:
        shown = [f"{name} {fields[name]}" for name in _SHOWN if name in fields]
        what = " ".join([fields["event"], *shown])
    return f"{seen.entry_id:5} {what:26} {seen.state}"
