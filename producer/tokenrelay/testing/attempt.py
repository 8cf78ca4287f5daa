"""A scripted worker's attempt at one request: the same writes as a real worker's, through the same scripts."""

from __future__ import annotations

import json
import zlib
from typing import TYPE_CHECKING, Final

from tokenrelay.shared import effective
from tokenrelay.shared.options import WIRE, filled, load
from tokenrelay.shared.redis.batches import Pipeline
from tokenrelay.shared.store import requests
from tokenrelay.shared.store.jobs import Execution, Outcome, close_call, drop_call, job_status, requeue_call
from tokenrelay.shared.store.record import Field, RequestRecord, look
from tokenrelay.shared.store.replies import Appended, Busy, Done, Early, Fenced, Granted, Past
from tokenrelay.shared.store.requests import Claimant, Prompt
from tokenrelay.shared.wire.entries import whole
from tokenrelay.testing.script import pieces

if TYPE_CHECKING:
    from redis import Redis

    from tokenrelay.shared.redis.commands import Argument, Call, Reply
    from tokenrelay.shared.store.replies import AppendReply, ClaimReply, ExpireReply, FinishReply, RenewReply
    from tokenrelay.shared.store.requests import TerminalEvent

LEASE_MS: Final = 6000
_FIELDS: Final = (Field.BODY, Field.RETENTION_MS, Field.ATTEMPT, Field.WIRE)
_MAX_CRASHES: Final = 3
_SUSPICION_MS: Final = 500
_VOCABULARY: Final = 50_000
_DRAW: Final = 1


class Attempt:
    """An attempt of `worker` at a taken request. Each write returns its script's reply."""

    def __init__(self, redis: Redis, execution: Execution, model: str, worker: str) -> None:
        self.execution = execution
        self.written = 0
        """Number of tokens in the stream, including earlier attempts'."""
        self._pipeline = Pipeline(redis)
        self._model = model
        self._fence = ""
        (held,) = self._pipeline.run([look(execution.job_id, _FIELDS)])
        record = RequestRecord(_FIELDS, held)
        wire = whole(record.wire) or 1
        self.request = filled(load(record.body or "{}", wire))
        self._effective = self._decided() if wire > 1 else ""
        self._retention_s = record.retention_s(60)
        self.number = record.attempts if record.has(Field.ATTEMPT) else 0
        """The attempt's number, from 1. Before the claim: the previous attempt's, or 0."""
        self._name = f"{worker}-{self.number + 1}"

    def _decided(self) -> str:
        """What the first claim stores of a request that asks for more than wire version 1 could."""
        return effective.dump(effective.decide(self.request, self.request["max_new_tokens"] or 0, _DRAW))

    def claim(self) -> ClaimReply:
        """Claim the request."""
        messages, given = self.request["messages"] or [], self.request["prompt_token_ids"] or []
        texts = pieces(self.request["prompt"] or "\n".join(message["content"] or "" for message in messages))
        ids = given or [token_id(piece) for piece in texts]
        claimant = Claimant(self._name, self._model, "scripted", LEASE_MS, _MAX_CRASHES, _SUSPICION_MS, WIRE)
        shown = json.dumps([piece.strip() for piece in texts])
        prompt = Prompt(self.request["seed"] or 0, len(ids), json.dumps(ids), shown, self._effective)
        reply = self._pipeline.ask(requests.claim(self.execution.job_id, self.execution.execution_id, claimant, prompt))
        if isinstance(reply, Granted):
            self._fence, self.number, self.written = reply.fence, reply.attempt, reply.next_index - 1
        return reply

    def append(self, *texts: str) -> AppendReply:
        """Write the next tokens."""
        tokens = [(piece, token_id(piece)) for piece in texts]
        reply = self._pipeline.ask(
            requests.append(self.execution.job_id, self._fence, self.written + 1, tokens, LEASE_MS)
        )
        self.written += len(texts) if isinstance(reply, Appended) else 0
        return reply

    def finish(self, event: TerminalEvent) -> FinishReply:
        """Write the terminal event, and close RQ's job."""
        reply = self._pipeline.ask(requests.finish(self.execution.job_id, self._fence, self.written + 1, (), event))
        self.close(event.message)
        return reply

    def renew(self) -> RenewReply | ExpireReply:
        """Renew the lease, or expire the request if its deadline has passed. Renewed: it continues."""
        expiry = self._pipeline.ask(requests.expire(self.execution.job_id))
        if not isinstance(expiry, Early):
            return expiry
        return self._pipeline.ask(requests.renew(self.execution.job_id, self._fence, LEASE_MS))

    def hand_back(self, *, crashed: bool = False) -> None:
        """Release the request and requeue its job, as a draining worker does, or a supervisor for its dead child."""
        release = requests.release(self.execution.job_id, self.execution.execution_id, crashed=crashed)
        if isinstance(self._pipeline.ask(release), Done):
            self.close()
        else:
            self._send(requeue_call(self.execution, "front"))

    def abandon(self, reply: ClaimReply | AppendReply | RenewReply | ExpireReply) -> None:
        """Handle a refused write: drop the execution, or close the job of a request that has ended."""
        if isinstance(reply, Busy | Fenced):
            self._send(drop_call(self.execution))
            return
        if isinstance(reply, Past):
            self._pipeline.ask(requests.expire(self.execution.job_id))
        self.close()

    def close(self, detail: str = "") -> None:
        """Close RQ's job with the request's outcome."""
        record = RequestRecord((Field.STATE,), self._send(look(self.execution.job_id, (Field.STATE,))))
        status = job_status(record.state) if record.exists else "failed"
        self._send(close_call(self.execution, Outcome(status, self._retention_s, detail)))

    def _send(self, item: Call | tuple[Argument, ...]) -> Reply:
        (reply,) = self._pipeline.run([item])
        if isinstance(reply, Exception):
            raise reply
        return reply


def token_id(piece: str) -> int:
    """A deterministic vocabulary ID for a text."""
    return zlib.crc32(piece.encode()) % _VOCABULARY
