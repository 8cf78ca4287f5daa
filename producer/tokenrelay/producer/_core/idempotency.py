"""One request per idempotency key: the same key and body attach to the request that is there.

The key's binding names a request ID before that request is created, so two producers that come at once create the same
one, and the script that creates lets the second attach.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from tokenrelay.producer._core.rounds import ask, ask_script
from tokenrelay.producer._core.submission import (
    Planned,
    check_depth,
    check_enqueued,
    conflict,
    enqueue_call_of,
    written,
)
from tokenrelay.shared.errors import ProtocolError
from tokenrelay.shared.store.jobs import bind_call
from tokenrelay.shared.store.record import Field, RequestRecord, look
from tokenrelay.shared.wire import keys
from tokenrelay.shared.wire.entries import State, text

if TYPE_CHECKING:
    from tokenrelay.producer._core.rounds import Steps
    from tokenrelay.shared.settings import ProducerSettings

_FIELDS: Final = (Field.STATE, Field.BODY_SHA256)
_NEW_MS: Final = 60_000
"""How long a producer may take from binding a key to creating its request."""


def submitted_once(plan: Planned, idempotency_key: str, settings: ProducerSettings) -> Steps[str]:
    """The ID of the request under the key, written now or before. Raises IdempotencyConflict, QueueFull."""
    bound_keys = keys.idempotency(idempotency_key), keys.idempotency_mark(idempotency_key)
    limit = settings.max_queue_depth
    bound, new = yield from ask([("GET", key) for key in bound_keys])
    gone = ""
    if bound is not None and not keys.is_request_id(text(bound)):
        gone = text(bound)  # none of ours: a request under such an ID could be neither served nor found
    elif bound is not None:
        holder = replace(plan, request_id=text(bound))
        if (yield from _attached(holder, limit)):
            return holder.request_id
        # Bound a moment ago: its producer is about to create the request, or died before it did. Otherwise the request
        # was there, has ended and is gone, and an ID is never used twice.
        if new != bound:
            gone = holder.request_id
    yield from check_depth([plan], limit)
    return (yield from _bound_and_written(plan, bound_keys, gone, limit))


def _attached(plan: Planned, limit: int) -> Steps[bool]:
    """Whether the request is there. Enqueues it where its producer died before it could."""
    (held,) = yield from ask([look(plan.request_id, _FIELDS)])
    record = RequestRecord(_FIELDS, held)
    if not record.exists:
        return False
    if record.body_sha256 != plan.body_sha256:
        raise conflict(plan.request_id)
    if _is_queued(record):
        reply = yield from ask_script(enqueue_call_of(plan, limit))
        check_enqueued(plan, reply, limit)
    return True


def _is_queued(record: RequestRecord) -> bool:
    try:
        return record.state is State.QUEUED
    except ProtocolError:  # a newer version's word: it has come further
        return False


def _bound_and_written(plan: Planned, bound_keys: tuple[str, str], gone: str, limit: int) -> Steps[str]:
    # Half of the retention: whatever was created is there for longer than the mark.
    new_ms = min(plan.retention_s * 500, _NEW_MS)
    bind = bind_call(bound_keys, plan.request_id, ttl_ms=plan.lifetime_s * 1000, expected=gone, new_ms=new_ms)
    bound_plan = replace(plan, request_id=(yield from ask_script(bind)))
    yield from written([bound_plan], limit)
    return bound_plan.request_id
