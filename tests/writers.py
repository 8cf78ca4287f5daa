"""A scripted writer: takes, claims, appends and ends requests as a worker does, with the real scripts but no model."""

from __future__ import annotations

import json
import os
import threading
from base64 import b64encode
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from tests.token_plane import reply_word
from tests.two_planes import STREAMS_URL, client_on, pipeline_on
from tokenrelay.shared import effective
from tokenrelay.shared.options import WIRE, filled, load
from tokenrelay.shared.redis.commands import Call
from tokenrelay.shared.store.jobs import Execution, Outcome, Take, close_call, job_status, take_call
from tokenrelay.shared.store.scripts import script
from tokenrelay.shared.wire import keys
from tokenrelay.shared.wire.entries import State, text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from redis import Redis

    from tokenrelay.shared.options import Submission

WEATHER: Final = ("It", " is", " sunny", " and", " warm", ".")
LEASE_MS: Final = 6000


@dataclass(frozen=True, slots=True)
class End:
    """A terminal event."""

    state: str = "completed"
    finish_reason: str = "stop"
    text: str = ""
    code: str = ""
    message: str = ""


@dataclass(frozen=True, slots=True)
class Scored:
    """A token's text, and the members of its `logprobs`, its own first: (token ID, log-probability, bytes)."""

    text: str
    logprobs: tuple[tuple[int, float, bytes], ...]

    def dump(self) -> str:
        return json.dumps([[each, logprob, b64encode(raw).decode()] for each, logprob, raw in self.logprobs])


class Writer:
    """One worker's writes, by request ID. Keeps the granted fences."""

    def __init__(self, redis: Redis, name: str = "scripted", model: str = "weather") -> None:
        self.redis = redis
        self.name = name
        self.model = model
        self._pipeline = pipeline_on(redis)
        self._executions: dict[str, Execution] = {}
        self._fences: dict[str, str] = {}
        self._next: dict[str, int] = {}
        self._count = 0

    def appear(self) -> None:
        """Register as a live worker for all of the model's queues."""
        worker = keys.rq_worker(self.name)
        queues = keys.queues(self.model)
        self.redis.hset(worker, mapping={"state": "idle", "queues": ",".join(queues)})
        self.redis.expire(worker, 60)
        self.redis.sadd(keys.RQ_WORKERS, worker)
        for queue in queues:
            self.redis.sadd(keys.rq_workers(queue), worker)

    def take(self) -> str | None:
        """Take the next request and return its ID; None if the queues are empty."""
        queues = keys.queues(self.model)
        self._count += 1
        execution_id = f"{self.name}x{self._count}"
        (taken,) = self._pipeline.run([take_call(Take(self.name, queues, (execution_id,), 60))])
        if isinstance(taken, Exception):
            raise taken
        if not taken:
            return None
        number, request_id = int(taken[0][0]), text(taken[0][1])
        self._executions[request_id] = Execution(request_id, queues[number - 1], self.name, execution_id)
        return request_id

    def request(self, request_id: str) -> Submission:
        raw, wire = self.redis.hmget(keys.request(request_id), "request", "wire")
        assert isinstance(raw, bytes)
        return load(raw, int(wire or 1))

    def claim(self, request_id: str) -> int:
        """Claim the request. Returns the next token's index, or 0 if it has ended."""
        execution = self._executions.get(request_id) or Execution(request_id, "", self.name, f"{self.name}x0")
        request = filled(self.request(request_id))
        decided = effective.decide(request, request["max_new_tokens"] or 0, draw=1)
        arguments = (
            execution.execution_id,
            LEASE_MS,
            self.name,
            self.model,
            "scripted",
            3,
            500,
            request["seed"] or 0,
            3,
            json.dumps([1, 2, 3]),
            "",
            WIRE,
            effective.dump(decided),
        )
        reply = self._call("claim", request_id, *arguments)
        if reply_word(reply) == "DONE":
            self._close(request_id)
            return 0
        assert reply_word(reply) == "OK", reply
        self._fences[request_id] = text(reply[1])
        self._next[request_id] = int(reply[3])
        return int(reply[3])

    def append(self, request_id: str, *texts: str | Scored) -> str:
        """Append tokens. Returns the script's reply word."""
        return reply_word(self._run(self.append_call(request_id, *texts)))

    def append_call(self, request_id: str, *texts: str | Scored) -> Call:
        """To be run once, and before the next one of the same request."""
        index = self._next[request_id]
        pairs: list[str | int] = []
        for number, piece in enumerate(texts, 100 + index):
            if isinstance(piece, Scored):
                pairs += (piece.text, f"{piece.logprobs[0][0]} {piece.dump()}")
            else:
                pairs += (piece, number)
        self._next[request_id] += len(texts)
        return _call("append", request_id, self._fences[request_id], index, LEASE_MS, *pairs)

    def lose(self, request_id: str, left: int) -> None:
        """Play a failover to a replica that has `left` tokens: what follows is written again."""
        rewrite(self.redis, request_id, left)
        self._next[request_id] = left + 1
        self.redis.hset(keys.request(request_id), "next", left + 1)

    def finish(self, request_id: str, end: End | None = None) -> str:
        """Write the terminal event and close RQ's job. Returns the script's reply word."""
        end = end or End()
        arguments = (end.state, end.finish_reason, end.text, end.code, end.message)
        reply = self._call("finish", request_id, self._fences[request_id], self._next[request_id], *arguments)
        self._close(request_id, end.message)
        return reply_word(reply)

    def release(self, request_id: str) -> None:
        """Hand the request back."""
        execution_id = self._fences[request_id].partition(":")[2]
        assert reply_word(self._call("release", request_id, execution_id, 0)) == "OK"

    def answer(self, request_id: str, texts: Sequence[str | Scored] = WEATHER, end: End | None = None) -> None:
        """Claim, append and finish a taken request."""
        if self.claim(request_id):
            for piece in texts:
                self.append(request_id, piece)
            self.finish(request_id, end)

    def _close(self, request_id: str, message: str = "") -> None:
        """Close RQ's job with the outcome in the request's hash."""
        if execution := self._executions.get(request_id):
            state = State(text(self.redis.hget(keys.request(request_id), "state")))
            outcome = Outcome(job_status(state), 3600, message)
            self._pipeline.run([close_call(execution, outcome)])

    def _call(self, script: str, request_id: str, *arguments: str | int) -> Any:
        return self._run(_call(script, request_id, *arguments))

    def _run(self, call: Call) -> Any:
        (reply,) = self._pipeline.run([call])
        if isinstance(reply, Exception):
            raise reply
        return reply


class AnnouncingWriter(Writer):
    """A writer that publishes each write on the wake channel, as workers do, so that gateways read at once."""

    def append(self, request_id: str, *texts: str | Scored) -> str:
        word = super().append(request_id, *texts)
        self.redis.publish(keys.WAKE, request_id)
        return word

    def finish(self, request_id: str, end: End | None = None) -> str:
        word = super().finish(request_id, end)
        self.redis.publish(keys.WAKE, request_id)
        return word


def _call(name: str, request_id: str, *arguments: str | int) -> Call:
    return Call(script(name), (keys.request(request_id), keys.stream(request_id)), arguments)


@contextmanager
def serving(url: str, respond: Callable[[Writer, str], None] = Writer.answer, model: str = "weather") -> Iterator[None]:
    """Run a live worker in a thread that handles each request with `respond(writer, request_id)`."""
    stopped = threading.Event()
    failures: list[BaseException] = []

    def serve() -> None:
        with client_on(url, os.environ.get(STREAMS_URL, url)) as redis:
            writer = AnnouncingWriter(redis, model=model)
            writer.appear()
            queue = keys.rq_queue(keys.queue(model, "default"))
            try:
                while not stopped.is_set():
                    request_id = writer.take()
                    if request_id is not None:
                        respond(writer, request_id)
                    else:
                        redis.blmove(queue, queue, 0.05, "LEFT", "LEFT")
            except Exception as error:  # noqa: BLE001 - a thread's failure belongs to the test, below
                failures.append(error)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join(60)
    assert not failures, failures


def rewrite(redis: Redis, request_id: str, count: int, text: bytes | None = None, *, more: bool = False) -> None:
    """Play a failover that lost the stream: write `count` tokens of it again, later than they were.

    `text` takes the place of the first one's. `more`: and one that's new, in the same moment.
    """
    stream = keys.stream(request_id)
    entries = redis.xrange(stream, "-", f"{count}-0")
    assert entries is not None
    with redis.pipeline() as transaction:
        transaction.delete(stream)
        for entry_id, fields in entries:
            later = {**fields, b"at_us": int(fields[b"at_us"]) + 5}  # type: ignore[dict-item, index]
            if entry_id == b"1-0" and text is not None:
                later[b"text"] = text
            transaction.xadd(stream, later, id=entry_id)  # type: ignore[arg-type]
        if more:
            transaction.xadd(stream, {"text": " new", "token": 7, "at_us": 1}, id=f"{count + 1}-0")
        transaction.expire(stream, 60)
        transaction.execute()
