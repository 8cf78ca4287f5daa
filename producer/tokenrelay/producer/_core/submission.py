"""Submitting planned requests: admit a call's where an idempotency key or limits need that, create, enqueue.

A key's binding names a request ID before that request is created, so two producers that come at once create the same
one, and the script that creates it lets the second attach.

Creating and enqueueing never share a batch, MULTI/EXEC or not: a server that knows the second script and not the first,
which is another release's, would queue a job without its request.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final, assert_never

from redis.exceptions import ResponseError

from tokenrelay.producer._core.drivers import check_redis
from tokenrelay.producer._core.endings import cancel
from tokenrelay.producer._core.model_defaults import ModelDefaults
from tokenrelay.producer._core.planning import RETRY_AFTER_S, conflict, create_call, enqueue_call, queue_full
from tokenrelay.producer._core.steps import SingleFlight, ask, ask_script, repeat
from tokenrelay.shared.errors import IdempotencyConflict, ProtocolError, QueueFull, TokenRelayError
from tokenrelay.shared.store.admissions import (
    Admission,
    Admitted,
    Bound,
    KeyBinding,
    OwnerLimits,
    TooManyOpen,
    TooManyQueued,
    admit_call,
    withdraw,
)
from tokenrelay.shared.store.job_replies import AlreadyEnqueued, Enqueued, Full
from tokenrelay.shared.store.record import Field, RequestRecord, look
from tokenrelay.shared.store.replies import Attached, Conflict, Created
from tokenrelay.shared.wire import keys
from tokenrelay.shared.wire.entries import State

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tokenrelay.producer._core.planning import Plan
    from tokenrelay.producer._core.steps import Steps
    from tokenrelay.shared.redis.calls import ScriptCall
    from tokenrelay.shared.redis.commands import Reply
    from tokenrelay.shared.settings import ProducerSettings
    from tokenrelay.shared.store.admissions import AdmitReply
    from tokenrelay.shared.store.job_replies import EnqueueReply
    from tokenrelay.shared.store.replies import CreateReply
    from tokenrelay.shared.wire.keys import Plane

_FIELDS: Final = (Field.STATE, Field.BODY_SHA256)
_NEW_MS: Final = 60_000
"""How long a producer may take from binding a key to creating its request."""


class OwnerLimitReached(Exception):
    """The owner has as many requests as it may; nothing was written."""

    def __init__(self, reply: TooManyOpen | TooManyQueued) -> None:
        super().__init__(reply)
        self.reply = reply


@dataclass(frozen=True, slots=True)
class Submitted:
    """A request that was written, or that was there under its idempotency key.

    `deadline_us`: Redis time; None where it was there before.
    """

    plan: Plan
    deadline_us: int | None

    @property
    def request_id(self) -> str:
        return self.plan.request_id


@dataclass(slots=True)
class Submitter:
    """Submits the requests of one client, and remembers what saves it round trips.

    A request without key and limits takes two: create, enqueue. Only where its queue was full a moment ago is the depth
    asked for first, so that an overloaded Redis isn't written to for requests that will be refused.
    """

    settings: ProducerSettings
    planes: Sequence[Plane] = ()
    """Planes whose servers are checked before the first write."""
    clock: Callable[[], float] = time.monotonic
    defaults: ModelDefaults = field(default_factory=ModelDefaults)
    _full_until: dict[str, float] = field(default_factory=dict)
    _is_checked: bool = False

    def submit(self, plan: Plan, limits: OwnerLimits | None = None) -> Steps[Submitted]:
        """As `submit_choices`, of one."""
        (submitted,) = yield from self.submit_choices([plan], limits)
        return submitted

    def submit_choices(self, plans: Sequence[Plan], limits: OwnerLimits | None = None) -> Steps[list[Submitted]]:
        """Write a call's requests, which share one base ID, all or none; or attach to those under its idempotency key.

        Raises IdempotencyConflict, QueueFull, OwnerLimitReached, RedisUnusable.
        """
        yield from self._check_servers()
        plans = yield from self._with_defaults(plans)
        first = plans[0]
        if first.idempotency_key is not None or limits is not None:
            return (yield from self._submit_admitted(plans, limits))
        if len(plans) > 1 or self.clock() < self._full_until.get(first.queue, 0.0):
            yield from self._check_depth(plans)
        return (yield from self.write(plans))

    def submit_many(self, plans: Sequence[Plan]) -> Steps[None]:
        """Write all of them, or none. Raises QueueFull, RedisUnusable."""
        yield from self._check_servers()
        plans = yield from self._with_defaults(plans)
        yield from self._check_depth(plans)
        yield from self.write(plans)

    def _with_defaults(self, plans: Sequence[Plan]) -> Steps[list[Plan]]:
        whole = []
        for plan in plans:
            whole.append((yield from self.defaults.apply(plan)))
        return whole

    def _check_servers(self) -> Steps[None]:
        """Once; an asyncio client's concurrent submits share the check."""
        if self.planes and not self._is_checked:
            yield SingleFlight("server check", check_redis(self.planes))
            self._is_checked = True

    def _submit_admitted(self, plans: Sequence[Plan], limits: OwnerLimits | None) -> Steps[list[Submitted]]:
        replaceable, first = "", plans[0]
        while True:
            reply = yield from self._admit(plans, limits, replaceable)
            match reply:
                case Admitted():
                    return (yield from self._write_or_withdraw(plans, limits, ResponseError, TokenRelayError))
                case Bound(request_id, is_new):
                    holders = [plan.under(request_id) for plan in plans]
                    # One that's no ID of ours could be neither served nor found. One that isn't new was created, so
                    # where it's missing its retention is over, and an ID is never used twice.
                    if keys.is_request_id(request_id):
                        if is_new:
                            return (yield from self._write_or_withdraw(holders, limits, QueueFull))
                        if (yield from self._attach(holders)):
                            return [Submitted(holder, None) for holder in holders]
                    replaceable = request_id
                case Full(depth):
                    raise queue_full(first.queue, depth, len(plans), self.settings.max_queue_depth)
                case TooManyOpen() | TooManyQueued():
                    raise OwnerLimitReached(reply)
                case _:
                    assert_never(reply)

    def _admit(self, plans: Sequence[Plan], limits: OwnerLimits | None, replaceable: str) -> Steps[AdmitReply]:
        """Ask again where requests that the limits counted have ended: their jobs are closed a moment later."""
        first = plans[0]
        key = first.idempotency_key
        # Half of the retention: whatever was created is there for longer than the mark.
        new_ms = min(first.retention_s * 500, _NEW_MS)
        admission = Admission(
            request_id=first.request_id,
            queue=first.queue,
            ttl_ms=first.lifetime_s * 1000,
            depth_limit=self.settings.max_queue_depth,
            binding=KeyBinding(key, new_ms, replaceable) if key is not None else None,
            limits=limits,
            choices=len(plans),
        )
        reply = yield from ask_script(admit_call(admission))
        if limits is not None and isinstance(reply, TooManyOpen | TooManyQueued):
            ended = yield from _ended(reply.counted)
            if ended:
                admission = replace(admission, limits=replace(limits, ended=ended))
                reply = yield from ask_script(admit_call(admission))
        return reply

    def _write_or_withdraw(
        self, plans: Sequence[Plan], limits: OwnerLimits | None, *refusals: type[Exception]
    ) -> Steps[list[Submitted]]:
        """Write the requests; after one of the refusals they no longer count among their owner's."""
        try:
            return (yield from self.write(plans))
        except IdempotencyConflict:
            raise  # another producer's request has the ID, and stays counted
        except refusals:
            if limits is not None:
                yield from ask([withdraw(limits.owner, [plan.request_id for plan in plans])])
            raise

    def _attach(self, plans: Sequence[Plan]) -> Steps[bool]:
        """Whether the requests are there. Creates and enqueues what their producer died before."""
        looks = yield from ask([look(plan.request_id, _FIELDS) for plan in plans])
        records = [RequestRecord(_FIELDS, held) for held in looks]
        if not records[0].exists:
            return False
        found = list(zip(plans, records, strict=True))
        for plan, record in found:
            if record.exists and record.body_sha256 != plan.body_sha256:
                raise conflict(plan.request_id)
        queued = [plan for plan, record in found if record.exists and _state(record) is State.QUEUED]
        # All are created before the first is enqueued: once that has begun, one that is missing has ended, and its
        # retention is over.
        if plans[0] in queued and not all(record.exists for record in records):
            yield from self.write(plans)
        elif queued:
            yield from self._enqueue(queued)
        return True

    def write(self, plans: Sequence[Plan]) -> Steps[list[Submitted]]:
        """Create all of the requests, then enqueue their jobs; where one is refused, cancel those that were created."""
        creates = [create_call(plan) for plan in plans]
        # Under a key the first one's body decides whose the base ID is: who loses creates none of the others.
        parts = [creates] if plans[0].idempotency_key is None else [creates[:1], creates[1:]]
        replies: list[Reply] = []
        submitted: list[Submitted] = []
        try:
            for part in filter(None, parts):
                replies += yield from repeat([*part])
                found = zip(plans, creates, replies, strict=False)
                submitted = [
                    Submitted(plan, _created_until(plan, create.value(reply))) for plan, create, reply in found
                ]
            yield from self._enqueue(plans)
        except (ResponseError, TokenRelayError):
            for plan, reply in zip(plans, replies, strict=False):
                # Under a key the next try attaches to it and enqueues it, and so may another producer by now.
                if plan.idempotency_key is None and not isinstance(reply, Exception):
                    yield from cancel(plan.request_id)
            raise
        return submitted

    def _enqueue(self, plans: Sequence[Plan]) -> Steps[None]:
        limit = self.settings.max_queue_depth
        enqueues = [self._enqueue_call(plan, limit) for plan in plans]
        replies = yield from repeat([*enqueues])
        for plan, enqueue, raw in zip(plans, enqueues, replies, strict=True):
            reply = enqueue.value(raw)
            match reply:
                case Full(depth):
                    self._note_full(plan.queue)
                    raise queue_full(plan.queue, depth, plan.choices, limit)
                case Enqueued(depth):
                    if depth >= limit:
                        self._note_full(plan.queue)
                case AlreadyEnqueued():
                    pass
                case _:
                    assert_never(reply)

    @staticmethod
    def _enqueue_call(plan: Plan, limit: int) -> ScriptCall[EnqueueReply]:
        """Of a call's requests the first decides for all whether its queue has room for them."""
        if plan.choice:
            return enqueue_call(plan, limit, behind=plan.base_id)
        return enqueue_call(plan, limit - plan.choices + 1)

    def _check_depth(self, plans: Sequence[Plan]) -> Steps[None]:
        """Raises QueueFull where a queue hasn't room for all of its plans."""
        queues, limit = sorted({plan.queue for plan in plans}), self.settings.max_queue_depth
        depths = yield from ask([("LLEN", keys.rq_queue(queue)) for queue in queues])
        for queue, depth in zip(queues, depths, strict=True):
            count = sum(plan.queue == queue for plan in plans)
            if depth + count > limit:
                if depth >= limit:
                    self._note_full(queue)
                raise queue_full(queue, depth, count, limit)

    def _note_full(self, queue: str) -> None:
        self._full_until[queue] = self.clock() + RETRY_AFTER_S


def _ended(request_ids: Sequence[str]) -> Steps[list[str]]:
    """Those of the requests that have ended, or are gone. They were enqueued, so they were there."""
    replies = (yield from ask([look(each, (Field.STATE,)) for each in request_ids])) if request_ids else []
    records = [RequestRecord((Field.STATE,), reply) for reply in replies]
    return [
        each
        for each, record in zip(request_ids, records, strict=True)
        if not record.exists or ((state := _state(record)) is not None and state.terminal)
    ]


def _state(record: RequestRecord) -> State | None:
    """None for a newer version's word: an open request's, for all that is known, and no longer a queued one's."""
    try:
        return record.state
    except ProtocolError:
        return None


def _created_until(plan: Plan, reply: CreateReply) -> int | None:
    """The deadline of a request that was created; None for one that was there before. Raises IdempotencyConflict."""
    match reply:
        case Created(deadline_us):
            return deadline_us
        case Attached():
            return None
        case Conflict():
            raise conflict(plan.request_id)
        case _:
            assert_never(reply)
