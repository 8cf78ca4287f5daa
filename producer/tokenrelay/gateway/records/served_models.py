"""The models that live workers serve, and their training traces, read from the workers' RQ registrations."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from tokenrelay.producer._core.steps import RoundTrip, ask, check_reply, is_wrong_type
from tokenrelay.shared.options import CAPABILITIES, WIRE
from tokenrelay.shared.store.registrations import Registration, WorkerField, is_alive, look, time_left
from tokenrelay.shared.wire import keys

if TYPE_CHECKING:
    from tokenrelay.producer._core.drivers import AsyncDriver
    from tokenrelay.producer._core.steps import Steps
    from tokenrelay.shared.redis.commands import Batch

_FIELDS: Final = (
    WorkerField.QUEUES,
    WorkerField.BIRTH,
    WorkerField.TRAINING,
    WorkerField.PID,
    WorkerField.CONTEXT_TOKENS,
    WorkerField.WIRE,
    WorkerField.CAPABILITIES,
)
_FRESH_S: Final = 10.0
"""How long what a model's workers can do is taken as known."""


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model that at least one live worker serves."""

    name: str
    since: int
    """When its first worker registered, seconds since the epoch."""
    training: str | None = field(repr=False)
    """The training trace as JSON."""
    pids: tuple[int, ...] = ()
    context_tokens: int | None = None
    """The smallest context length of its workers; None if no worker reports one."""
    wire: int = 1
    """The highest wire version that one of its workers knows."""
    capabilities: frozenset[str] = frozenset()
    """What at least one of its workers can do."""

    def lacking(self, names: set[str]) -> set[str]:
        """Those of these options of wire version 2 that none of its workers knows."""
        return (
            names
            if self.wire < WIRE
            else {name for name in names if CAPABILITIES.get(name, "") not in {"", *self.capabilities}}
        )


class ServedModels:
    """Looks up served models, and remembers names once seen so that requests are accepted while workers restart."""

    def __init__(self, driver: AsyncDriver, default: str) -> None:
        self._driver = driver
        self._known = {default}
        self._seen: dict[str, tuple[float, ServedModel]] = {}

    async def served(self) -> dict[str, ServedModel]:
        """Name → model that live workers serve now."""
        found = await self._driver.run(read_served_models())
        self._known |= set(found)
        self._seen = {name: (time.monotonic(), model) for name, model in found.items()}
        return found

    async def lacking(self, name: str, options: set[str]) -> set[str]:
        """Those of these options that no live worker of the model knows; none where no worker is there to ask."""
        seen_at, model = self._seen.get(name, (-_FRESH_S, None))
        if model is None or time.monotonic() - seen_at > _FRESH_S or model.lacking(options):
            model = (await self.served()).get(name)
        return model.lacking(options) if model else set()

    async def is_known(self, name: str) -> bool:
        """Whether the model is the default one, is served now, or was served since this process started."""
        return name in self._known or name in await self.served()


def read_served_models() -> Steps[dict[str, ServedModel]]:
    """Name → model, over all workers with a recent heartbeat."""
    (workers,) = yield from ask([("SMEMBERS", keys.RQ_WORKERS)])
    if not workers:
        return {}
    batch: Batch = []
    for worker in workers:
        batch += [look(worker, _FIELDS), time_left(worker)]
    replies = yield RoundTrip(batch)
    found: dict[str, ServedModel] = {}
    for registered, left_ms in zip(replies[::2], replies[1::2], strict=True):
        if is_wrong_type(registered):
            continue  # not a registration
        worker = Registration(_FIELDS, check_reply(registered))
        if not worker.has_queues or not is_alive(check_reply(left_ms)):
            continue
        for name in worker.models:
            before = found.get(name)
            found[name] = ServedModel(
                name=name,
                since=min(worker.since, before.since if before else worker.since),
                training=worker.training or (before.training if before else None),
                pids=(*(before.pids if before else ()), *([worker.pid] if worker.pid is not None else [])),
                context_tokens=_least(before.context_tokens if before else None, worker.context_tokens),
                wire=max(worker.wire, before.wire if before else 1),
                capabilities=worker.capabilities | (before.capabilities if before else frozenset()),
            )
    return dict(sorted(found.items()))


def training(model: ServedModel) -> Any:
    """The model's training trace; None if it has none or it isn't valid JSON."""
    try:
        return json.loads(model.training) if model.training else None
    except (ValueError, RecursionError):
        return None


def _least(*known: int | None) -> int | None:
    """The smallest known value: any of a model's workers may take a request."""
    return min((each for each in known if each is not None), default=None)
