"""From a caller's arguments to a request that survives: validate, plan, create, enqueue.

Nothing is written before everything is known to be acceptable. ID and seed are drawn here, once, so that a batch that
wasn't answered is sent again as it was: scripts answer a repeat as they did the first time.
"""

from __future__ import annotations

import json
import math
import secrets
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, assert_never

from redis.exceptions import ResponseError

from tokenrelay.producer._core.endings import cancel
from tokenrelay.producer._core.rounds import ask, resent
from tokenrelay.shared import options
from tokenrelay.shared.errors import IdempotencyConflict, QueueFull, RequestError, TokenRelayError
from tokenrelay.shared.redis.connections import check_fit
from tokenrelay.shared.store import requests
from tokenrelay.shared.store.job_replies import AlreadyEnqueued, Enqueued, Full
from tokenrelay.shared.store.jobs import Enqueue, enqueue_call
from tokenrelay.shared.store.replies import Conflict
from tokenrelay.shared.store.requests import NewRequest
from tokenrelay.shared.wire import keys

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from tokenrelay.producer._core.rounds import Steps
    from tokenrelay.shared.options import Submission
    from tokenrelay.shared.redis.batches import Reply
    from tokenrelay.shared.settings import ProducerSettings
    from tokenrelay.shared.store.call import ScriptCall
    from tokenrelay.shared.store.job_replies import EnqueueReply
    from tokenrelay.shared.store.replies import CreateReply

RETRY_AFTER_S: Final = 1.0
_SEED_BITS: Final = 53
"""Drawn seeds stay below what every JSON reader holds exactly."""


@dataclass(frozen=True, slots=True)
class Planned:
    """One request, ready to be written."""

    request_id: str
    queue: str
    body: str
    body_sha256: str
    deadline_ms: int
    retention_s: int
    metadata: str
    idempotency_key: str | None
    owner: str = ""
    """Whose it is, for gateways: an API key's name."""
    request: Submission = field(default_factory=dict, repr=False)  # type: ignore[assignment]
    """What `body` says."""
    unsaid: frozenset[str] = frozenset()
    """Options that the caller didn't give, and that a model may have defaults of its own for."""

    @property
    def lifetime_s(self) -> int:
        """How long its keys may live: up to the deadline, and the retention behind it."""
        return math.ceil(self.deadline_ms / 1000) + self.retention_s


def planned(submission: Mapping[str, Any], settings: ProducerSettings) -> Planned:
    """The request with its defaults, ID and seed. Raises RequestError naming field and limit."""
    request = options.validate({"model": settings.model, **submission}, settings.limits)
    # Before anything is resolved: a repeat must find the same body.
    body_sha256 = options.body_sha256(request, settings.limits)
    request["max_new_tokens"] = options.budget(request, settings.limits)
    if request["seed"] is None:
        request["seed"] = secrets.randbits(_SEED_BITS)
    metadata = request["metadata"]
    return Planned(
        request_id=keys.new_request_id(),
        queue=keys.queue(request["model"], request["priority"]),
        body=options.dump(request),
        body_sha256=body_sha256,
        deadline_ms=max(1, int(request["deadline_s"] * 1000)),
        retention_s=settings.retention_s,
        metadata=json.dumps(metadata, ensure_ascii=False, allow_nan=False) if metadata else "",
        idempotency_key=request["idempotency_key"],
        request=request,
        unsaid=options.MODELS_OWN - submission.keys(),
    )


def planned_many(items: Iterable[Any], common: Mapping[str, Any], settings: ProducerSettings) -> list[Planned]:
    """All of a batch. Raises RequestError naming the item, the field and the limit."""
    plans = []
    for number, item in enumerate(items):
        own = {"prompt": item} if isinstance(item, str) else item
        try:
            if not isinstance(own, dict):
                raise RequestError(
                    f"a {type(item).__name__} is no request; give a prompt or a dict of options", field="prompt"
                )
            plan = planned({**common, **own}, settings)
            if plan.idempotency_key is not None:
                raise RequestError(
                    "idempotency_key: not possible in a batch; submit such requests one by one",
                    field="idempotency_key",
                )
        except RequestError as error:
            raise RequestError(
                f"item {number}: {error.message}", field=error.field, limit=error.limit, code=error.code
            ) from None
        plans.append(plan)
    return plans


def fit() -> Steps[None]:
    """Check that this Redis keeps what it's given. Raises RedisUnusable. Skipped where INFO isn't to be had."""
    try:
        (info,) = yield from ask([("INFO",)])
    except ResponseError:  # no right to it, or a double that has none
        return
    check_fit(info)


def submitted_many(plans: list[Planned], settings: ProducerSettings) -> Steps[None]:
    """Write all of the batch, or none. Raises QueueFull before anything is written."""
    yield from check_depth(plans, settings.max_queue_depth)
    yield from written(plans, settings.max_queue_depth)


def written(plans: list[Planned], limit: int) -> Steps[None]:
    """Create all requests, then enqueue their jobs. What was created before another was refused is cancelled, but for a
    request under an idempotency key: the next try attaches to it and enqueues it, and so may another producer by now.

    Never in one batch, MULTI/EXEC or not: a server that knows the second script and not the first, which is another
    release's, queues a job without its request, and a worker may take it before the batch is sent again.
    Raises QueueFull where others filled the queue meanwhile; IdempotencyConflict.
    """
    creates = [create_call(plan) for plan in plans]
    created = yield from resent([*creates])
    try:
        for plan, create, reply in zip(plans, creates, created, strict=True):
            if isinstance(create.value(reply), Conflict):
                raise conflict(plan.request_id)
        enqueues = [enqueue_call_of(plan, limit) for plan in plans]
        enqueued = yield from resent([*enqueues])
        for plan, enqueue, reply in zip(plans, enqueues, enqueued, strict=True):
            check_enqueued(plan, enqueue.value(reply), limit)
    except (ResponseError, TokenRelayError):
        for plan, reply in zip(plans, created, strict=True):
            if _is_ours(plan, reply):
                yield from cancel(plan.request_id)
        raise


def check_enqueued(plan: Planned, reply: EnqueueReply, limit: int) -> None:
    """Raises QueueFull if the queue refused the request."""
    match reply:
        case Full(depth):
            raise _queue_full(plan.queue, depth, 1, limit)
        case Enqueued() | AlreadyEnqueued():
            return
        case _:
            assert_never(reply)


def _is_ours(plan: Planned, created: Reply) -> bool:
    """Whether only this call knows of the request that it created."""
    return not isinstance(created, Exception) and plan.idempotency_key is None


def conflict(request_id: str) -> IdempotencyConflict:
    return IdempotencyConflict(
        "idempotency_key: it belongs to a request with another body; use another key, or the same body",
        field="idempotency_key",
        code="idempotency_conflict",
        request_id=request_id,
    )


def check_depth(plans: list[Planned], limit: int) -> Steps[None]:
    """Before anything is written: the queues must take all of the batch."""
    queues = sorted({plan.queue for plan in plans})
    depths = yield from ask([("LLEN", keys.rq_queue(queue)) for queue in queues])
    for queue, depth in zip(queues, depths, strict=True):
        count = sum(plan.queue == queue for plan in plans)
        if depth + count > limit:
            raise _queue_full(queue, depth, count, limit)


def _queue_full(queue: str, depth: int, count: int, limit: int) -> QueueFull:
    advice = f"try again in {RETRY_AFTER_S:g} s" if count <= limit else f"submit {limit} at a time at most"
    return QueueFull(
        f"queue {queue}: {depth} requests wait, at most {limit} may, so {count} more don't fit; {advice}",
        queue=queue,
        depth=depth,
        limit=limit,
        retry_after_s=RETRY_AFTER_S,
    )


def create_call(plan: Planned) -> ScriptCall[CreateReply]:
    return requests.create(
        NewRequest(
            request_id=plan.request_id,
            queue=plan.queue,
            body=plan.body,
            body_sha256=plan.body_sha256,
            deadline_ms=plan.deadline_ms,
            retention_ms=plan.retention_s * 1000,
            owner=plan.owner,
            metadata=plan.metadata,
        )
    )


def enqueue_call_of(plan: Planned, limit: int) -> ScriptCall[EnqueueReply]:
    job = Enqueue(
        request_id=plan.request_id,
        queue=plan.queue,
        ttl_s=plan.lifetime_s,
        timeout_s=math.ceil(plan.deadline_ms / 1000),
        retention_s=plan.retention_s,
        depth_limit=limit,
    )
    return enqueue_call(job, datetime.now(UTC))
