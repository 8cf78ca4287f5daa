"""Submits as a tenant: enforces its limits, and scopes idempotency keys to it.

A tenant's open requests are in a sorted set in Redis, shared by all gateways. The admission script counts and adds in
one step, so concurrent submits can't exceed a limit.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, assert_never

from tokenrelay.gateway.http.problems import Problem, too_many_requests
from tokenrelay.gateway.records.record import mark_unlimited
from tokenrelay.producer._core.planning import plan_request
from tokenrelay.producer._core.submission import OwnerLimitReached
from tokenrelay.shared.store.admissions import OwnerLimits, TooManyOpen, TooManyQueued

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tokenrelay.gateway.tenancy.tenants import Tenant
    from tokenrelay.producer._core.planning import Plan
    from tokenrelay.producer._core.steps import Steps
    from tokenrelay.producer._core.submission import Submitted, Submitter

_RETRY_AFTER_S: Final = 2.0


def submit_as(tenant: Tenant, submission: Mapping[str, Any], submitter: Submitter) -> Steps[Submitted]:
    """Submit the request, or attach to the existing one with its idempotency key.

    Raises RequestError, IdempotencyConflict, QueueFull, and Problem 429 if the tenant has reached a limit.
    """
    plan = plan_request(submission, submitter.settings)
    if submission.get("max_new_tokens") is None:
        plan = mark_unlimited(plan)
    if tenant.owner is None:
        return (yield from submitter.submit(plan))
    limits = OwnerLimits(tenant.owner, tenant.max_concurrent, tenant.max_queued)
    try:
        return (yield from submitter.submit(_owned(plan, tenant.owner), limits))
    except OwnerLimitReached as refused:
        raise _problem(refused.reply, tenant) from None


def _owned(plan: Plan, owner: str) -> Plan:
    """The plan with its owner, and the idempotency key scoped to the owner."""
    key = plan.idempotency_key
    if key is not None:
        key = hashlib.sha256(f"{owner}\0{key}".encode()).hexdigest()
    return replace(plan, owner=owner, idempotency_key=key)


def _problem(refusal: TooManyOpen | TooManyQueued, tenant: Tenant) -> Problem:
    match refusal:
        case TooManyOpen(count):
            what = f"this API key has {count} open requests; its limit is {tenant.max_concurrent}"
            code = "concurrency_limit"
        case TooManyQueued(count):
            what = f"this API key has {count} queued requests; its limit is {tenant.max_queued}"
            code = "queue_limit"
        case _:
            assert_never(refusal)
    return too_many_requests(f"{what}; retry in {_RETRY_AFTER_S:g} s", code, _RETRY_AFTER_S)
