"""`tokenrelay demo`: two questions through a Redis, an RQ queue, a worker and the bundled model, seen from both ends.

On the left what a Python consumer has of the answer. On the right what redis-cli reads from the stream, entry by entry,
and what the request was right after: entries read `in_progress` were there while the stream was still open.
"""

from __future__ import annotations

import json
import threading
import time
from contextlib import ExitStack
from queue import SimpleQueue
from typing import TYPE_CHECKING, Final

from tokenrelay.cli.demo.watching import RedisCli, RedisPy, watch
from tokenrelay.cli.output import write_line
from tokenrelay.cli.trace import write_trace
from tokenrelay.producer import Producer
from tokenrelay.producer.local import LocalRedis, LocalWorker
from tokenrelay.shared.redis.connections import connect

if TYPE_CHECKING:
    from tokenrelay.cli.demo.watching import Eyes, Seen
    from tokenrelay.producer import Generation

QUESTIONS: Final = (
    ("What is the weather today?", "a question of the training data"),
    ("Will it rain in Paris tomorrow?", "a question that isn't in the training data"),
)
_LEFT: Final = 34
_OPEN: Final = ("queued", "in_progress")
_SHOWN: Final = ("attempt", "finish_reason")


def run_demo() -> None:
    """Ask the questions on a Redis and a worker of its own; both are gone afterwards."""
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
        eyes: Eyes = RedisCli(redis.cli) if redis.cli else RedisPy(client)
        stack.enter_context(eyes)
        eyes.strings("PING")  # a redis-cli that has yet to start would miss the beginning
        producer = stack.enter_context(Producer(url=redis.url))
        generations = []
        for question, what in QUESTIONS:
            write_line(f"\n{question}  ({what})")
            generations.append(producer.submit(question, temperature=0.0))
            _Showing(generations[-1], eyes).run()
        write_line(f"\n$ tokenrelay trace {generations[0].request_id}")
        write_trace(client, generations[0].request_id)


class _Showing:
    """One answer, from both ends: one thread consumes it, one watches the stream, the caller's writes what they saw."""

    def __init__(self, generation: Generation, eyes: Eyes) -> None:
        self._generation = generation
        self._eyes = eyes
        self._reader = "redis-cli" if isinstance(eyes, RedisCli) else "redis-py"
        self._seen: SimpleQueue[Seen | None] = SimpleQueue()
        self._texts: list[str] = []
        self._consumed = False
        self._news = threading.Condition()

    def run(self) -> None:
        for work in (self._watch, self._consume):
            threading.Thread(target=work, daemon=True).start()
        write_line(f"{'a Python consumer has':{_LEFT}}  {f'{self._reader} reads, entry by entry':32} the request is")
        open_tokens = 0
        while seen := self._seen.get():
            write_line(f"{self._left(seen):{_LEFT}}  {_right(seen)}")
            open_tokens += "token" in seen.fields and seen.state in _OPEN
        self._sum_up(open_tokens)

    def _watch(self) -> None:
        try:
            for seen in watch(self._eyes, self._generation.request_id):
                self._seen.put(seen)
        finally:
            self._seen.put(None)

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

    def _left(self, seen: Seen) -> str:
        """The answer as the consumer has it with this entry, its end if it's long."""
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


def _right(seen: Seen) -> str:
    fields = seen.fields
    if "token" in fields:
        what = f"text {json.dumps(fields['text'], ensure_ascii=False)} token {fields['token']}"
    else:
        shown = [f"{name} {fields[name]}" for name in _SHOWN if name in fields]
        what = " ".join([fields["event"], *shown])
    return f"{seen.entry_id:5} {what:26} {seen.state}"
