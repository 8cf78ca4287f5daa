"""What live workers serve, from their RQ registrations: models, and the training traces that workers publish there."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from redis.exceptions import ResponseError

from tokenrelay.producer.rounds import Round, ask, refused
from tokenrelay.shared import keys
from tokenrelay.shared.entries import text, whole
from tokenrelay.shared.store.jobs import WORKER_SILENT_S, WORKER_TTL_S

if TYPE_CHECKING:
    from tokenrelay.producer.rounds import AsyncDriver, Steps
    from tokenrelay.shared.commands import Batch

_LIVE_MS: Final = (WORKER_TTL_S - WORKER_SILENT_S) * 1000


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
        batch += [("HMGET", worker, "queues", "birth", "training", "pid", "context_tokens"), ("PTTL", worker)]
    replies = yield Round(batch)
    found: dict[str, Served] = {}
    for registered, left_ms in zip(replies[::2], replies[1::2], strict=True):
        if isinstance(registered, ResponseError) and "WRONGTYPE" in str(registered):
            continue  # no registration
        queues, birth, training, pid, context = refused([registered])[0]
        if queues is None or refused([left_ms])[0] <= _LIVE_MS:
            continue
        for name in _names(text(queues)):
            before = found.get(name)
            found[name] = Served(
                name=name,
                since=min(_seconds(birth), before.since if before else _seconds(birth)),
                training=text(training) if training else (before.training if before else None),
                pids=(*(before.pids if before else ()), *([known] if (known := whole(pid)) else [])),
                context_tokens=_least(before.context_tokens if before else None, whole(context) or None),
            )
    return dict(sorted(found.items()))


def training(model: Served) -> Any:
    """The model's training trace, None where it has none or one that isn't JSON."""
    try:
        return json.loads(model.training) if model.training else None
    except (ValueError, RecursionError):
        return None


def _names(queues: str) -> set[str]:
    return {name for name in map(keys.model_of, queues.split(",")) if name}


def _least(*known: int | None) -> int | None:
    """Any of a model's workers may take a request: the smallest context is what certainly fits."""
    return min((each for each in known if each is not None), default=None)


def _seconds(birth: object) -> int:
    """RQ's birth date; 0 where it can't be read."""
    try:
        return int(datetime.fromisoformat(text(birth)).timestamp())
    except (ValueError, OverflowError, OSError):
        return 0
