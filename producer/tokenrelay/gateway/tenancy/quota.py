"""Submitting as a tenant: within its limits, and under idempotency keys that are its own.

A tenant's unended requests stand in a sorted set in Redis, so that all gateways count together. A request that comes
takes its place first and looks then who stands before it: of two that come at once, one is let in and not both or none.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from tokenrelay.gateway.http.problems import Problem, too_many
from tokenrelay.gateway.records.marks import unlimited
from tokenrelay.producer._core.idempotency import submitted_once
from tokenrelay.producer._core.rounds import ask, ask_script
from tokenrelay.producer._core.submission import planned, submitted_many
from tokenrelay.shared.errors import ProtocolError, TokenRelayError
from tokenrelay.shared.store.jobs import place_call
from tokenrelay.shared.store.record import Field, RequestRecord, look
from tokenrelay.shared.wire import keys
from tokenrelay.shared.wire.entries import State, text

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tokenrelay.gateway.tenancy.tenants import Tenant
    from tokenrelay.producer._core.model_defaults import ModelDefaults
    from tokenrelay.producer._core.rounds import Steps
    from tokenrelay.producer._core.submission import Planned
    from tokenrelay.shared.settings import GatewaySettings

_RETRY_AFTER_S: Final = 2.0


def admitted(
    submission: Mapping[str, Any], tenant: Tenant, settings: GatewaySettings, defaults: ModelDefaults
) -> Steps[str]:
    """The ID of the request, written now or before under its idempotency key.

    Raises RequestError, IdempotencyConflict, QueueFull, and Problem 429 where the tenant has enough already.
    """
    plan = planned(submission, settings)
    plan = yield from defaults.applied(unlimited(plan) if submission.get("max_new_tokens") is None else plan)
    if tenant.owner is None:
        return (yield from _written(plan, settings))
    key = plan.idempotency_key
    if key is not None:
        # Another tenant's key of the same name is another key.
        key = hashlib.sha256(f"{tenant.owner}\0{key}".encode()).hexdigest()
    plan = replace(plan, owner=tenant.owner, idempotency_key=key)
    repeated = key is not None and (yield from _is_bound(key))
    if not repeated:
        yield from _take_place(plan, tenant)
    try:
        return (yield from _written(plan, settings))
    except TokenRelayError:
        yield from ask([("ZREM", keys.of_owner(tenant.owner), plan.request_id)])
        raise


def _written(plan: Planned, settings: GatewaySettings) -> Steps[str]:
    if plan.idempotency_key is not None:
        return (yield from submitted_once(plan, plan.idempotency_key, settings))
    yield from submitted_many([plan], settings)
    return plan.request_id


def _is_bound(idempotency_key: str) -> Steps[bool]:
    (bound,) = yield from ask([("EXISTS", keys.idempotency(idempotency_key))])
    return bool(bound)


def _take_place(plan: Planned, tenant: Tenant) -> Steps[None]:
    """Be counted. Raises Problem 429 where the tenant's limits are reached."""
    owned = keys.of_owner(plan.owner)
    now_us = yield from ask_script(place_call(plan.owner, plan.request_id))
    (members, kept_ms) = yield from ask([("ZRANGE", owned, 0, -1, "WITHSCORES"), ("PTTL", owned)])
    yield from ask([("PEXPIRE", owned, max(int(kept_ms), plan.lifetime_s * 1000))])
    before = _before([(text(member), score) for member, score in members], plan.request_id)
    looks = (yield from ask([look(other, _FIELDS) for other, _ in before])) if before else []
    ended: list[str] = []
    open_states: list[State] = []
    for (other, at_us), held in zip(before, looks, strict=True):
        record = RequestRecord(_FIELDS, held)
        state = _state(record) if record.exists else None
        if state is not None and not state.terminal:
            open_states.append(state)
        elif state is not None or now_us - at_us > _ARRIVING_US:
            ended.append(other)
        else:
            open_states.append(State.QUEUED)  # its gateway is about to write it
    if ended:
        yield from ask([("ZREM", owned, *ended)])
    problem = _over(open_states, tenant)
    if problem is not None:
        yield from ask([("ZREM", owned, plan.request_id)])
        raise problem


def _state(record: RequestRecord) -> State:
    try:
        return record.state
    except ProtocolError:  # a newer version's word: an open request's, for all that is known
        return State.IN_PROGRESS


_ARRIVING_US: Final = 10_000_000
_FIELDS: Final = (Field.STATE,)


def _before(members: list[tuple[str, float]], request_id: str) -> list[tuple[str, float]]:
    """Those that came before the request."""
    ids = [member for member, _ in members]
    return members[: ids.index(request_id)] if request_id in ids else members


def _over(open_states: list[State], tenant: Tenant) -> Problem | None:
    if len(open_states) >= tenant.max_concurrent:
        told = f"this key has {len(open_states)} requests that haven't ended, and may have {tenant.max_concurrent}"
        return too_many(f"{told}; try again in {_RETRY_AFTER_S:g} s", "concurrency_limit", _RETRY_AFTER_S)
    queued = open_states.count(State.QUEUED)
    if queued >= tenant.max_queued:
        told = f"this key has {queued} requests waiting for a worker, and may have {tenant.max_queued}"
        return too_many(f"{told}; try again in {_RETRY_AFTER_S:g} s", "queue_limit", _RETRY_AFTER_S)
    return None
