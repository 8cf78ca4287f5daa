"""Tenants, their API keys and limits, and submitting as one. Only hashes of keys are stored.

A tenant's open requests are in a sorted set in Redis, shared by all gateways. The admission script counts and adds in
one step, so concurrent submits can't exceed a limit.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Final, assert_never

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from tokenrelay.gateway.http.problems import Problem, too_many_requests, unauthorized
from tokenrelay.gateway.records.record import mark_unlimited
from tokenrelay.producer._core.planning import plan_choices
from tokenrelay.producer._core.submission import OwnerLimitReached
from tokenrelay.shared.errors import RequestError, SettingsError
from tokenrelay.shared.store.admissions import OwnerLimits, TooManyOpen, TooManyQueued

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tokenrelay.producer._core.planning import Plan
    from tokenrelay.producer._core.steps import Steps
    from tokenrelay.producer._core.submission import Submitted, Submitter
    from tokenrelay.shared.settings import GatewaySettings

_PREFIX: Final = "tr-"
_RETRY_AFTER_S: Final = 2.0


class ApiKey(BaseModel):
    """One configured key. `name` identifies the tenant, and stays the same when the key is rotated."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    max_concurrent: Annotated[int | None, Field(ge=1, le=10_000)] = None
    max_queued: Annotated[int | None, Field(ge=1, le=10_000)] = None


_KEYS: Final = TypeAdapter(list[ApiKey])


@dataclass(frozen=True, slots=True)
class Tenant:
    """A caller. `owner` is None if no keys are configured: then a request's ID is enough to read it."""

    owner: str | None
    max_concurrent: int
    max_queued: int


class Tenants:
    """The configured tenants. Without configured keys, anyone may call."""

    def __init__(self, settings: GatewaySettings) -> None:
        """Raises SettingsError for invalid keys."""
        most, queued = settings.key_max_concurrent, settings.key_max_queued
        self._anyone = Tenant(None, most, queued)
        self._by_hash = {
            key.sha256: Tenant(key.name, key.max_concurrent or most, key.max_queued or queued)
            for key in _configured(settings)
        }

    @property
    def required(self) -> bool:
        """Whether requests need an API key."""
        return bool(self._by_hash)

    def tenant(self, key: str | None) -> Tenant:
        """The key's tenant. Raises Problem 401."""
        if not self.required:
            return self._anyone
        if not key:
            raise unauthorized("no API key was given: send it as Authorization: Bearer KEY")
        # Look up the hash, not the key: its timing reveals nothing about keys.
        found = self._by_hash.get(hash_of(key))
        if found is None:
            raise unauthorized("this API key is unknown")
        return found


def submit_as(
    tenant: Tenant, submissions: Sequence[Mapping[str, Any]], n: int, submitter: Submitter
) -> Steps[list[Submitted]]:
    """Submit `n` requests for each of the submissions, or attach to the existing ones with their idempotency key.

    Raises RequestError, IdempotencyConflict, QueueFull, and Problem 429 if the tenant has reached a limit.
    """
    plans = plan_choices(submissions, n, submitter.settings)
    if submissions[0].get("max_new_tokens") is None:
        plans = [mark_unlimited(plan) for plan in plans]
    if tenant.owner is None:
        return (yield from submitter.submit_choices(plans))
    _check_count(len(plans), n, tenant)
    limits = OwnerLimits(tenant.owner, tenant.max_concurrent, tenant.max_queued)
    try:
        return (yield from submitter.submit_choices([_owned(plan, tenant.owner) for plan in plans], limits))
    except OwnerLimitReached as refused:
        raise _problem(refused.reply, tenant) from None


def _check_count(requests: int, n: int, tenant: Tenant) -> None:
    """Raises RequestError for a call that no retry would let in."""
    most = min(tenant.max_concurrent, tenant.max_queued)
    if requests > most:
        field = "n" if n > 1 else "prompt"
        message = f"{field}: asks for {requests} answers at once; this API key may have {most}"
        raise RequestError(message, field=field, limit=most)


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


def hash_of(key: str) -> str:
    """The stored form of a key."""
    return hashlib.sha256(key.encode("utf-8", "replace")).hexdigest()


def new_key(name: str) -> tuple[str, dict[str, str]]:
    """A new key of 256 random bits, and its entry for the keys file. Raises SettingsError for an invalid name."""
    key = _PREFIX + secrets.token_urlsafe(32)
    line = {"name": name, "sha256": hash_of(key)}
    _checked([line])
    return key, line


def _configured(settings: GatewaySettings) -> list[ApiKey]:
    if settings.api_keys is not None:
        return _checked(_decoded(settings.api_keys.get_secret_value()))
    if settings.api_keys_file is None:
        return []
    try:
        return _checked(_decoded(settings.api_keys_file.read_text("utf-8")))
    except OSError as error:
        raise SettingsError(f"TOKENRELAY_API_KEYS_FILE: {error}") from None


def _decoded(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise SettingsError(f"TOKENRELAY_API_KEYS: isn't JSON ({error})") from None


def _checked(raw: Any) -> list[ApiKey]:
    try:
        found = _KEYS.validate_python(raw)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "the list"
        raise SettingsError(f"TOKENRELAY_API_KEYS: {where}: {first['msg']}") from None
    if not found:
        raise SettingsError("TOKENRELAY_API_KEYS: has no keys; unset it to allow access without keys")
    if len({key.sha256 for key in found}) < len(found):
        raise SettingsError("TOKENRELAY_API_KEYS: duplicate sha256")
    return found
