"""A request's status, cancellation and expiry, and the exceptions for how it ended."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeVar, assert_never

from redis.exceptions import AuthenticationError, BusyLoadingError

from tokenrelay.producer._core.steps import LOST, ask
from tokenrelay.shared.errors import (
    GenerationCancelled,
    GenerationExpired,
    GenerationFailed,
    ProtocolError,
    RequestError,
    RequestNotFound,
    StreamExpired,
    unreadable,
)
from tokenrelay.shared.redis.commands import server_time, server_time_us
from tokenrelay.shared.store import request_view, requests
from tokenrelay.shared.store.jobs import Execution, Outcome, close_call, job_status
from tokenrelay.shared.store.record import Field, RequestRecord, look
from tokenrelay.shared.store.replies import Cancelled, Done, Early, Expired, Lost, Unreadable
from tokenrelay.shared.store.request_view import RequestView
from tokenrelay.shared.wire import keys
from tokenrelay.shared.wire.answer import Answer, Assembler
from tokenrelay.shared.wire.entries import Ended, State, parse_entry
from tokenrelay.shared.wire.keys import Plane

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tokenrelay.producer._core.steps import Steps
    from tokenrelay.shared.redis.calls import ScriptCall

T = TypeVar("T")
_STATUS_FIELDS: Final = (
    *request_view.FIELDS,
    Field.ATTEMPT,
    Field.QUEUE,
    Field.METADATA,
    Field.CANCELLED_BY,
)
_CLOSING_FIELDS: Final = (Field.FENCE, Field.QUEUE, Field.RETENTION_MS)


@dataclass(frozen=True, slots=True)
class Status:
    """A snapshot of a request."""

    request_id: str
    state: State
    tokens: int
    attempts: int
    queue: str
    deadline_us: int
    """Redis server time, microseconds since 1970."""
    now_us: int
    """When this was read, by the same clock."""
    cancelled_by: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def seconds_left(self) -> float:
        """Until the deadline; negative past it."""
        return (self.deadline_us - self.now_us) / 1e6


def check_id(request_id: str) -> str:
    """The ID, if it can be one. Raises RequestError."""
    if not keys.is_request_id(request_id):
        raise RequestError(
            f"request_id: {ascii(request_id)[:80]} is none; an ID is 22 to 64 of A-Z a-z 0-9 _ -", field="request_id"
        )
    return request_id


def status(request_id: str) -> Steps[Status]:
    """The request's status. Past its deadline an unended one is reported as ended. Raises RequestNotFound."""
    held, time = yield from ask([look(request_id, _STATUS_FIELDS), server_time(Plane.TOKEN)])
    record = RequestRecord(_STATUS_FIELDS, held)
    if not record.exists:
        raise RequestNotFound(f"no request {request_id}: it never was, or its retention is over", request_id=request_id)
    view = RequestView.of(request_id, record, server_time_us(time))
    try:
        attempts, metadata = record.attempts, record.metadata
    except ProtocolError as error:
        raise unreadable(request_id, error) from None
    return Status(
        request_id=request_id,
        state=view.shown_state,
        tokens=view.tokens,
        attempts=attempts,
        queue=record.queue,
        deadline_us=view.deadline_us,
        now_us=view.now_us,
        cancelled_by=record.cancelled_by,
        metadata=metadata,
    )


def cancel(request_id: str, cancelled_by: str = "producer") -> Steps[bool]:
    """End the request as cancelled. False where it had ended before, or is gone."""
    record, reply = yield from _read_and_end(request_id, requests.cancel(request_id, cancelled_by))
    match reply:
        case Cancelled():
            yield from _close_job(request_id, record, State.CANCELLED)
            return True
        case Done() | Lost():
            return False
        case _:
            assert_never(reply)


def expire(request_id: str) -> Steps[bool]:
    """End the request if its deadline is past. False where it isn't, or where the request had ended before."""
    record, reply = yield from _read_and_end(request_id, requests.expire(request_id))
    match reply:
        case Expired(state):
            yield from _close_job(request_id, record, state)
            return True
        case Early() | Done() | Unreadable() | Lost():
            return False
        case _:
            assert_never(reply)


def _read_and_end(request_id: str, ending: ScriptCall[T]) -> Steps[tuple[RequestRecord, T]]:
    """The request as it was before the call, and the call's reply."""
    # Not in MULTI: a full Redis refuses every transaction, but not these scripts, whose work frees memory.
    held, reply = yield from ask([look(request_id, _CLOSING_FIELDS), ending])
    return RequestRecord(_CLOSING_FIELDS, held), ending.value(reply)


def _close_job(request_id: str, record: RequestRecord, state: State) -> Steps[None]:
    """Close the job of a request that no worker owned. A worker that owns it is notified and closes the job itself.

    The request has ended whether RQ can be reached or not: the worker that takes its job closes it.
    """
    if record.owned:
        return
    outcome = Outcome(job_status(state), record.retention_s(1), "the deadline passed")
    try:
        yield from ask([close_call(Execution(request_id, record.queue), outcome)])
    except AuthenticationError:
        raise
    except (*LOST, BusyLoadingError):
        return


def raise_unless_answered(request_id: str, ended: Ended) -> Steps[None]:
    """Raises the exception for how the request ended, with all of its partial text, unless it ended in an answer.

    Reads the whole stream: the reader may have started in the middle.
    """
    if ended.state.is_answer:
        return
    (entries,) = yield from ask([("XRANGE", keys.stream(request_id), "-", "+")])
    if not entries:
        raise StreamExpired(f"the stream of request {request_id} is gone", request_id=request_id)
    assembler = Assembler(request_id)
    for entry_id, fields in entries:
        assembler.receive(parse_entry(entry_id, fields))
    answer_or_raise(assembler.answer(ended))


def answer_or_raise(answer: Answer) -> Answer:
    """The answer, if the request ended in one. Raises GenerationFailed, GenerationCancelled, GenerationExpired."""
    request_id, tokens = answer.request_id, len(answer.tokens)
    match answer.state:
        case State.COMPLETED | State.INCOMPLETE:
            return answer
        case State.FAILED:
            raise GenerationFailed(f"request {request_id} failed ({answer.code}): {answer.message}", answer=answer)
        case State.CANCELLED:
            who = answer.cancelled_by or "somebody"
            raise GenerationCancelled(
                f"request {request_id} was cancelled by {who} after {tokens} tokens", answer=answer
            )
        case State.EXPIRED:
            raise GenerationExpired(f"request {request_id} expired: no token came before its deadline", answer=answer)
        case State.QUEUED | State.IN_PROGRESS:
            raise ValueError(f"request {request_id} is {answer.state}: it hasn't ended")
        case _:
            assert_never(answer.state)
