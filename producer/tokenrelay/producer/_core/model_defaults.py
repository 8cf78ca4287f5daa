"""A model's own sampling defaults: its workers register them, and requests that leave an option open get them.

So whoever continues the request obeys the same, whatever its worker's own model folder says by then. Where no live
worker of the model is there to ask, or may be asked, the defaults of `Options` hold.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from redis.exceptions import NoPermissionError

from tokenrelay.producer._core.steps import RoundTrip, SingleFlight, check_reply, is_wrong_type
from tokenrelay.shared import options
from tokenrelay.shared.errors import ProtocolError
from tokenrelay.shared.store.registrations import Registration, WorkerField, look
from tokenrelay.shared.wire import keys

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tokenrelay.producer._core.planning import Plan
    from tokenrelay.producer._core.steps import Steps

FRESH_S: Final = 10.0
"""Time to live of a model's defaults."""
ABSENT_S: Final = 1.0
"""Time to live of the knowledge that no worker serves a model."""
MAX_KNOWN: Final = 256
"""Models that are remembered: callers choose the names."""
_FIELDS: Final = (WorkerField.QUEUES, WorkerField.DEFAULTS)
_MOST_ASKED: Final = 8


@dataclass(slots=True)
class ModelDefaults:
    """A cache of models' defaults. Concurrent submits of an asyncio client share one lookup of a model; between threads
    a race costs a second one."""

    clock: Callable[[], float] = time.monotonic
    _known: dict[str, tuple[float, Mapping[str, Any]]] = field(default_factory=dict)

    def apply(self, plan: Plan) -> Steps[Plan]:
        """The plan with the model's defaults for the options that weren't given. Raises RedisUnusable."""
        found = (yield from self.lookup(plan.request["model"])) if plan.not_given else {}
        return plan.resolved(found)

    def lookup(self, model: str) -> Steps[Mapping[str, Any]]:
        """The model's defaults, by the names of our options. Raises RedisUnusable."""
        until, known = self._known.get(model, (0.0, {}))
        if self.clock() < until:
            return known
        (found,) = yield SingleFlight(("model defaults", model), self._refresh(model))
        return found  # type: ignore[no-any-return]

    def _refresh(self, model: str) -> Steps[Mapping[str, Any]]:
        found = yield from _read_registered(model)
        self._known.pop(model, None)
        if len(self._known) >= MAX_KNOWN:
            del self._known[next(iter(self._known))]
        self._known[model] = (self.clock() + (ABSENT_S if found is None else FRESH_S), found or {})
        return found or {}


def _read_registered(model: str) -> Steps[Mapping[str, Any] | None]:
    """What live workers of the model registered; None where there is none, or where it may not be read."""
    (members,) = yield RoundTrip([("SMEMBERS", keys.rq_workers(keys.queue(model, "default")))])
    if _unreadable(members):
        return None
    workers = sorted(check_reply(members))[:_MOST_ASKED]
    replies = (yield RoundTrip([look(worker, _FIELDS) for worker in workers])) if workers else []
    alive = False
    for reply in replies:
        if _unreadable(reply):
            continue
        worker = Registration(_FIELDS, check_reply(reply))
        alive = alive or worker.has_queues
        if (defaults := _valid(worker)) is not None:
            return defaults
    return {} if alive else None


def _unreadable(reply: object) -> bool:
    return isinstance(reply, NoPermissionError) or is_wrong_type(reply)


def _valid(worker: Registration) -> Mapping[str, Any] | None:
    """The defaults that it registered; none of them where they can't be read."""
    try:
        defaults = worker.defaults
        return None if defaults is None else options.sampling_defaults(defaults)
    except ProtocolError:
        return {}
