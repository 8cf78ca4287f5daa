"""Submitting as a tenant: within its limits, and under idempotency keys that are its own.

A tenant's unended requests stand in a sorted set in Redis, so that all gateways count together. The script that admits
a request counts and adds it in one step: however many come at once, no more are let in than may be.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, assert_never

from tokenrelay.gateway.http.problems import Problem, too_many
from tokenrelay.gateway.records.marks import unlimited
from tokenrelay.producer._core.planning import plan_request
from tokenrelay.producer._core.submission import OwnerLimitReached
from tokenrelay.shared.store.admissions import OwnerLimits, TooManyOpen, TooManyQueued

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tokenrelay.gateway.tenancy.tenants import Tenant
    from tokenrelay.producer._core.planning import Plan
    from tokenrelay.producer._core.rounds import Steps
    from tokenrelay.producer._core.submission import Submitted, Submitter

_RETRY_AFTER_S: Final = 2.0


def submit_as(tenant: Tenant, submission: Mapping[str, Any], submitter: Submitter) -> Steps[Submitted]:
    """The request, written now or before under its idempotency key.

    Raises RequestError, IdempotencyConflict, QueueFull, and Problem 429 where the tenant has enough already.
    """
    plan = plan_request(submission, submitter.settings)
    if submission.get("max_new_tokens") is None:
        plan = unlimited(plan)
    if tenant.owner is None:
        return (yield from submitter.submit(plan))
    limits = OwnerLimits(tenant.owner, tenant.max_concurrent, tenant.max_queued)
    try:
        return (yield from submitter.submit(_owned(plan, tenant.owner), limits))
    except OwnerLimitReached as refused:
        raise _problem(refused.reply, tenant) from None


def _owned(plan: Plan, owner: str) -> Plan:
    """The plan as the owner's; another owner's idempotency key of the same name is another key."""
    key = plan.idempotency_key
    if key is not None:
        key = hashlib.sha256(f"{owner}\0{key}".encode()).hexdigest()
    return replace(plan, owner=owner, idempotency_key=key)


def _problem(refusal: TooManyOpen | TooManyQueued, tenant: Tenant) -> Problem:
    match refusal:
        case TooManyOpen(count):
            what = f"this key has {count} requests that haven't ended, and may have {tenant.max_concurrent}"
            code = "concurrency_limit"
        case TooManyQueued(count):
            what = f"this key has {count} requests waiting for a worker, and may have {tenant.max_queued}"
            code = "queue_limit"
        case _:
            assert_never(refusal)
    return too_many(f"{what}; try again in {_RETRY_AFTER_S:g} s", code, _RETRY_AFTER_S)
