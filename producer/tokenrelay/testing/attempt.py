"""One worker's attempt at one request: every write that a worker makes, by the scripts that a worker uses."""

from __future__ import annotations

import json
import zlib
from typing import TYPE_CHECKING, Final

from tokenrelay.shared import keys
from tokenrelay.shared.commands import Call, Pipeline, reply_word
from tokenrelay.shared.entries import State, text
from tokenrelay.shared.options import load
from tokenrelay.shared.rq_jobs import STATUS_OF, Execution, Outcome, close_call, drop_call, requeue_call
from tokenrelay.testing.script import End, pieces

if TYPE_CHECKING:
    from redis import Redis

    from tokenrelay.shared.commands import Argument, Reply

LEASE_MS: Final = 6000
_MAX_CRASHES: Final = 3
_SUSPICION_MS: Final = 500
_VOCABULARY: Final = 50_000


class Attempt:
    """Of the worker `worker` at a request that it has taken. Each write returns its script's word: OK, DONE, …"""

    def __init__(self, redis: Redis, execution: Execution, model: str, worker: str) -> None:
        self.execution = execution
        self.written = 0
        """Tokens that the stream has, those of earlier attempts included."""
        self._pipeline = Pipeline(redis)
        self._hash = keys.request(execution.job_id)
        self._model = model
        self._fence = ""
        raw, retention_ms, attempts = redis.hmget(self._hash, "request", "retention_ms", "attempt")
        self.request = load(raw or "{}")
        self._retention_s = int(retention_ms or 60_000) // 1000
        self.number = int(attempts or 0)
        """From 1 once it is claimed; until then that of the attempt before, 0 where there was none."""
        self._name = f"{worker}-{self.number + 1}"

    def claim(self) -> str:
        """Become the request's only writer."""
        messages = self.request["messages"] or []
        texts = pieces(self.request["prompt"] or "\n".join(message["content"] for message in messages))
        ids = [token_id(piece) for piece in texts]
        identity = (self.execution.execution_id, LEASE_MS, self._name, self._model, "scripted")
        prompt = (self.request["seed"] or 0, len(ids), json.dumps(ids), json.dumps([piece.strip() for piece in texts]))
        reply = self._call("claim", *identity, _MAX_CRASHES, _SUSPICION_MS, *prompt)
        if reply_word(reply) == "OK":
            self._fence, self.number, self.written = text(reply[1]), int(reply[2]), int(reply[3]) - 1
        return reply_word(reply)

    def append(self, *texts: str) -> str:
        """Write the next tokens."""
        pairs = [item for piece in texts for item in (piece, token_id(piece))]
        word = reply_word(self._call("append", self._fence, self.written + 1, LEASE_MS, *pairs))
        self.written += len(texts) if word == "OK" else 0
        return word

    def finish(self, end: End) -> str:
        """Write the terminal event, and close RQ's job."""
        told = (end.state, end.finish_reason, end.text, end.code, end.message)
        word = reply_word(self._call("finish", self._fence, self.written + 1, *told))
        self.close(end.message)
        return word

    def beat(self) -> str:
        """Renew the lease, or end the request where its deadline is past: OK while it goes on."""
        if reply_word(self._call("expire")) != "EARLY":
            return "DONE"
        return reply_word(self._call("renew", self._fence, LEASE_MS))

    def hand_over(self, *, crashed: bool = False) -> None:
        """Give the request up, as a draining worker does, or a supervisor for its dead child."""
        if reply_word(self._call("release", self.execution.execution_id, int(crashed))) == "DONE":
            self.close()
        else:
            self._send(requeue_call(self.execution, "front"))

    def give_up(self, word: str) -> None:
        """Draw the consequence of a refused write: a request that has ended is closed in RQ too."""
        if word in ("BUSY", "FENCED"):
            self._send(drop_call(self.execution))
            return
        if word == "PAST":
            self._call("expire")
        self.close()

    def close(self, detail: str = "") -> None:
        """Tell RQ how the request ended, by whomever."""
        state = self._send(("HGET", self._hash, "state"))
        status = STATUS_OF[State(text(state))] if state else "failed"
        self._send(close_call(self.execution, Outcome(status, self._retention_s, detail)))

    def _call(self, script: str, *arguments: Argument) -> Reply:
        return self._send(Call(script, (self._hash, keys.stream(self.execution.job_id)), arguments))

    def _send(self, item: Call | tuple[Argument, ...]) -> Reply:
        (reply,) = self._pipeline.run([item])
        if isinstance(reply, Exception):
            raise reply
        return reply


def token_id(piece: str) -> int:
    """A vocabulary ID for a text: always the same one."""
    return zlib.crc32(piece.encode()) % _VOCABULARY
