"""From a caller's arguments to requests that are ready to be written, and the two calls that write each. No I/O.

IDs and seeds are drawn here, once, so that a call that wasn't answered is sent again as it was: scripts answer a repeat
as they did the first time.
"""

from __future__ import annotations

import hashlib
import json
import math
import secrets
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from tokenrelay.producer._core.parsing import model_of
from tokenrelay.shared import options
from tokenrelay.shared.errors import IdempotencyConflict, QueueFull, RequestError
from tokenrelay.shared.request_fields import MAX_CHOICES, MAX_N
from tokenrelay.shared.store import jobs, requests
from tokenrelay.shared.store.jobs import Enqueue
from tokenrelay.shared.store.requests import NewRequest
from tokenrelay.shared.wire import keys

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from pydantic import BaseModel

    from tokenrelay.shared.options import StoredRequest
    from tokenrelay.shared.redis.calls import ScriptCall
    from tokenrelay.shared.settings import ProducerSettings
    from tokenrelay.shared.store.job_replies import EnqueueReply
    from tokenrelay.shared.store.replies import CreateReply

RETRY_AFTER_S: Final = 1.0
_SEED_BITS: Final = 53
"""Drawn seeds stay below what every JSON reader holds exactly."""


@dataclass(frozen=True, slots=True)
class Plan:
    """One request, ready to be written."""

    request_id: str
    request: StoredRequest = field(repr=False)
    body_sha256: str
    """Of the request as the caller gave it: before seed, budget and defaults were resolved."""
    retention_s: int
    idempotency_key: str | None
    owner: str = ""
    """Whose it is, for gateways: an API key's name."""
    not_given: frozenset[str] = frozenset()
    """Options that the caller didn't give, and that a model may have defaults of its own for."""
    response_model: type[BaseModel] | None = None
    """The pydantic model that the caller gave as `response_format`."""
    seed_of_id: bool = False
    """Whether its seed follows from the base ID: the caller gave none for several choices."""

    @property
    def choice(self) -> int:
        """Which of the requests of one call it is, from 0."""
        return self.request.get("choice", 0)

    @property
    def choices(self) -> int:
        """How many requests its call has."""
        return self.request.get("choices", 1)

    @property
    def base_id(self) -> str:
        """The ID of its call's first request."""
        return self.request_id.removesuffix(f"-{self.choice}") if self.choice else self.request_id

    def under(self, base_id: str) -> Plan:
        """The plan with that base ID. Two producers that submit several choices under one idempotency key at once
        write the same ones, whichever creates which."""
        request = self.request
        if self.seed_of_id:
            request = {**request, "seed": derived_seed(base_id, self.choice)}
        return replace(self, request_id=keys.choice_id(base_id, self.choice), request=request)

    def resolved(self, models_own: Mapping[str, Any]) -> Plan:
        """The plan with what the model's own defaults make of the request."""
        return replace(self, request=options.resolve(self.request, self.not_given, models_own))

    @property
    def queue(self) -> str:
        return keys.queue(self.request["model"], self.request["priority"])

    @property
    def deadline_ms(self) -> int:
        """Milliseconds from its creation to its deadline."""
        return max(1, int(self.request["deadline_s"] * 1000))

    @property
    def lifetime_s(self) -> int:
        """How long its keys may live: up to the deadline, and the retention behind it."""
        return math.ceil(self.deadline_ms / 1000) + self.retention_s


def plan_request(
    submission: Mapping[str, Any], settings: ProducerSettings, *, choice: int = 0, choices: int = 1
) -> Plan:
    """The request with its defaults, ID and seed. Raises RequestError naming field and limit.

    `choice` of `choices` of one call: as `plan_choices` places it.
    """
    request: StoredRequest = {**options.validate({"model": settings.model, **submission}, settings.limits)}  # type: ignore[typeddict-item]
    if choices > 1:
        request["choices"] = choices
    if choice:
        request["choice"] = choice
    # Before anything is resolved: a repeat must find the same body.
    body_sha256 = options.body_sha256(request, settings.limits)
    request["max_new_tokens"] = options.budget(request, settings.limits)
    if request["seed"] is None:
        request["seed"] = secrets.randbits(_SEED_BITS)
    return Plan(
        request_id=keys.new_request_id(),
        request=request,
        body_sha256=body_sha256,
        retention_s=settings.retention_s,
        idempotency_key=request["idempotency_key"],
        not_given=options.MODELS_OWN - submission.keys(),
        response_model=model_of(submission.get("response_format")),
    )


def plan_choices(submissions: Sequence[Mapping[str, Any]], n: int, settings: ProducerSettings) -> list[Plan]:
    """`n` requests for each of the submissions, whose IDs share one base. Raises RequestError naming field and limit.

    The first choice of a submission is drawn with its seed, choice k with one that is derived from it, so it's the same
    for every `n` above k.
    """
    if type(n) is not int or not 1 <= n <= MAX_N:
        raise RequestError(f"n: {ascii(n)[:60]}; give a whole number from 1 to {MAX_N}", field="n", limit=MAX_N)
    choices = len(submissions) * n
    if choices > MAX_CHOICES:
        many = f"{len(submissions)} prompts with {n} choices each" if n > 1 else f"{len(submissions)} prompts"
        raise RequestError(f"prompt: {many}; at most {MAX_CHOICES} in all", field="prompt", limit=MAX_CHOICES)
    plans = []
    for number, submission in enumerate(submissions):
        for k in range(n):
            plan = plan_request(submission, settings, choice=number * n + k, choices=choices)
            if (seed := submission.get("seed")) is not None and k:
                plan.request["seed"] = derived_seed(seed, k)
            plans.append(replace(plan, seed_of_id=seed is None and choices > 1))
    return [plan.under(plans[0].request_id) for plan in plans]


def derived_seed(root: int | str, choice: int) -> int:
    """The seed of a later choice, from the first one's; or of any, from the base ID."""
    digest = hashlib.sha256(f"{root}:{choice}".encode("ascii")).digest()
    return int.from_bytes(digest[:8], "big") >> (64 - _SEED_BITS)


def plan_many(items: Iterable[Any], common: Mapping[str, Any], settings: ProducerSettings) -> list[Plan]:
    """All of a batch. Raises RequestError naming the item, the field and the limit."""
    plans = []
    for number, item in enumerate(items):
        own = {"prompt": item} if isinstance(item, str) else item
        try:
            if not isinstance(own, dict):
                raise RequestError(
                    f"a {type(item).__name__} is no request; give a prompt or a dict of options", field="prompt"
                )
            plan = plan_request({**common, **own}, settings)
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


def conflict(request_id: str) -> IdempotencyConflict:
    return IdempotencyConflict(
        "idempotency_key: it belongs to a request with another body; use another key, or the same body",
        field="idempotency_key",
        code="idempotency_conflict",
        request_id=request_id,
    )


def queue_full(queue: str, depth: int, count: int, limit: int) -> QueueFull:
    advice = f"try again in {RETRY_AFTER_S:g} s" if count <= limit else f"submit {limit} at a time at most"
    return QueueFull(
        f"queue {queue}: {depth} requests wait, at most {limit} may, so {count} more don't fit; {advice}",
        queue=queue,
        depth=depth,
        limit=limit,
        retry_after_s=RETRY_AFTER_S,
    )


def dump_metadata(metadata: Mapping[str, Any]) -> str:
    """Metadata as the JSON that the hash and the `queued` event keep."""
    return json.dumps(metadata, ensure_ascii=False, allow_nan=False)


def create_call(plan: Plan) -> ScriptCall[CreateReply]:
    metadata = plan.request["metadata"]
    return requests.create(
        NewRequest(
            request_id=plan.request_id,
            queue=plan.queue,
            body=options.dump(plan.request),
            body_sha256=plan.body_sha256,
            deadline_ms=plan.deadline_ms,
            retention_ms=plan.retention_s * 1000,
            wire=options.wire_of(plan.request),
            owner=plan.owner,
            metadata=dump_metadata(metadata) if metadata else "",
        )
    )


def enqueue_call(plan: Plan, limit: int, behind: str = "") -> ScriptCall[EnqueueReply]:
    """`behind`: the request whose job decides: this one is enqueued where that one is, whatever the depth."""
    job = Enqueue(
        request_id=plan.request_id,
        queue=plan.queue,
        ttl_s=plan.lifetime_s,
        timeout_s=math.ceil(plan.deadline_ms / 1000),
        retention_s=plan.retention_s,
        depth_limit=limit,
        behind=behind,
    )
    return jobs.enqueue_call(job, datetime.now(UTC))
