"""Admission to a queue, before a call's requests are created: idempotency key, its owner's limits and the queue's depth
in one script of the queue plane."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from tokenrelay.shared.redis.calls import ScriptCall, by_word, whole_number
from tokenrelay.shared.store.job_replies import Full
from tokenrelay.shared.store.scripts import script
from tokenrelay.shared.wire import keys
from tokenrelay.shared.wire.entries import text

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tokenrelay.shared.redis.commands import Argument, Command


@dataclass(frozen=True, slots=True)
class KeyBinding:
    """An idempotency key to be bound to the request's ID.

    For `new_ms` a mark beside it says that the request may be about to be created. `replaceable`: the ID whose binding
    is void, for its request is gone; empty for none.
    """

    idempotency_key: str
    new_ms: int
    replaceable: str = ""


@dataclass(frozen=True, slots=True)
class OwnerLimits:
    """Whose request it is, and how many unended ones that API key may have, and how many of them queued.

    `ended`: IDs among the owner's that are known to have ended, whatever RQ says of their jobs.
    """

    owner: str
    max_concurrent: int
    max_queued: int
    ended: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Admission:
    """What the admission of one call needs. `ttl_ms`: how long its binding and its owner's set are kept; `choices`: its
    requests, which have the base ID `request_id`."""

    request_id: str
    queue: str
    ttl_ms: int
    depth_limit: int
    binding: KeyBinding | None = None
    limits: OwnerLimits | None = None
    choices: int = 1


@dataclass(frozen=True, slots=True)
class Admitted:
    """The requests may be created: the idempotency key is bound to them, and each counts among its owner's."""


@dataclass(frozen=True, slots=True)
class Bound:
    """The idempotency key is bound to another request. `is_new`: it may be about to be created."""

    request_id: str
    is_new: bool


@dataclass(frozen=True, slots=True)
class TooManyOpen:
    """The owner has as many unended requests as it may. `counted`: IDs, by what RQ says of their jobs; 256 at most."""

    count: int
    counted: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TooManyQueued:
    """The owner has as many queued requests as it may. `counted`: as TooManyOpen's."""

    count: int
    counted: tuple[str, ...]


AdmitReply = Admitted | Bound | Full | TooManyOpen | TooManyQueued

_ADMIT: Final[Callable[[Any], AdmitReply]] = by_word(
    OK=Admitted,
    BOUND=Bound,
    FULL=Full,
    CONCURRENT=lambda reply: TooManyOpen(whole_number(reply[1]), tuple(map(text, reply[2:]))),
    QUEUED=lambda reply: TooManyQueued(whole_number(reply[1]), tuple(map(text, reply[2:]))),
)


def admit_call(admission: Admission) -> ScriptCall[AdmitReply]:
    """Bind, count and admit, or change nothing. A repeat for the same request ID is admitted again."""
    binding, limits = admission.binding or KeyBinding("", 0), admission.limits or OwnerLimits("", 0, 0)
    keyed, owned = admission.binding is not None, admission.limits is not None
    script_keys = [keys.rq_queue(admission.queue)]
    if keyed:
        script_keys += [keys.idempotency(binding.idempotency_key), keys.idempotency_mark(binding.idempotency_key)]
    if owned:
        script_keys.append(keys.of_owner(limits.owner))
    arguments: tuple[Argument, ...] = (
        admission.request_id,
        admission.ttl_ms,
        admission.depth_limit,
        int(keyed),
        binding.new_ms,
        binding.replaceable,
        int(owned),
        limits.max_concurrent,
        limits.max_queued,
        keys.rq_job(""),
        keys.claimed(""),
        admission.choices,
        *limits.ended,
    )
    return ScriptCall(script("admit"), tuple(script_keys), arguments, _ADMIT)


def withdraw(owner: str, request_ids: Sequence[str]) -> Command:
    """No longer count admitted requests that weren't enqueued."""
    return ("ZREM", keys.of_owner(owner), *request_ids)
