"""What live workers serve, from their RQ registrations: models, and the training traces that workers publish there."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from redis.exceptions import ResponseError

from tokenrelay.producer._core.rounds import Round, ask, refused
from tokenrelay.shared.store.registrations import Registration, WorkerField, is_alive, look
from tokenrelay.shared.wire import keys

if TYPE_CHECKING:
    from tokenrelay.producer._core.rounds import AsyncDriver, Steps
    from tokenrelay.shared.redis.batches import Batch

_FIELDS: Final = (
    WorkerField.QUEUES,
    WorkerField.BIRTH,
    WorkerField.TRAINING,
    WorkerField.PID,
    WorkerField.CONTEXT_TOKENS,
)


@dataclass(frozen=True, slots=True)
class Served:
    """A model that at least one live worker serves."""

    name: str
    since: int
    """When the first of its workers registered, seconds since 1970."""
    training: str | None = field(repr=False)
    """The training trace as JSON."""
    pids: tuple[int, ...] = ()
    context_tokens: int | None = None
    """What prompt and answer together may have with any of its workers; None where none of them says so."""


class Models:
    """Looks up what is served. Remembers names that were, so that a worker's restart refuses nobody."""

    def __init__(self, driver: AsyncDriver, default: str) -> None:
        self._driver = driver
        self._known = {default}

    async def served(self) -> dict[str, Served]:
        """Name → what live workers serve now."""
        found = await self._driver.run(served())
        self._known |= set(found)
        return found

    async def is_known(self, name: str) -> bool:
        """Whether the model is served, or was while this process has been up, or is the default one."""
        return name in self._known or name in await self.served()


def served() -> Steps[dict[str, Served]]:
    """Name → model, of all workers that have beaten lately."""
    (workers,) = yield from ask([("SMEMBERS", keys.RQ_WORKERS)])
    if not workers:
        return {}
    batch: Batch = []
    for worker in workers:
        batch += [look(worker, _FIELDS), ("PTTL", worker)]
    replies = yield Round(batch)
    found: dict[str, Served] = {}
    for registered, left_ms in zip(replies[::2], replies[1::2], strict=True):
        if isinstance(registered, ResponseError) and "WRONGTYPE" in str(registered):
            continue  # no registration
        worker = Registration(_FIELDS, refused([registered])[0])
        if not worker.has_queues or not is_alive(refused([left_ms])[0]):
            continue
        for name in worker.models:
            before = found.get(name)
            found[name] = Served(
                name=name,
                since=min(worker.since, before.since if before else worker.since),
                training=worker.training or (before.training if before else None),
                pids=(*(before.pids if before else ()), *([worker.pid] if worker.pid is not None else [])),
                context_tokens=_least(before.context_tokens if before else None, worker.context_tokens),
            )
    return dict(sorted(found.items()))


def training(model: Served) -> Any:
    """The model's training trace, None where it has none or one that isn't JSON."""
    try:
        return json.loads(model.training) if model.training else None
    except (ValueError, RecursionError):
        return None


def _least(*known: int | None) -> int | None:
    """Any of a model's workers may take a request: the smallest context is what certainly fits."""
    return min((each for each in known if each is not None), default=None)
