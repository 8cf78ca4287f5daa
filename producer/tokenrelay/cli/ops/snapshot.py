"""A snapshot for `tokenrelay top`: the system, and statistics from a sample of its requests. Renders nothing.

The cost of a snapshot is bounded: it reads a limited number of running and of recently ended requests. Statistics say
how many requests they are based on.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict, dataclass
from itertools import chain, pairwise
from typing import TYPE_CHECKING, Any, Final

from redis.exceptions import NoPermissionError

from tokenrelay.cli.ops import request_summaries
from tokenrelay.cli.ops.system import read_system
from tokenrelay.cli.terminal.tables import Percentiles

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenrelay.cli.ops.request_summaries import Migration, Place, RequestRef, RequestSummary
    from tokenrelay.cli.ops.system import System
    from tokenrelay.producer._core.steps import Steps

MAX_RUNNING: Final = 120
MAX_ENDED: Final = 100
"""Requests read for one snapshot; one sixth of the running ones are the longest-running."""
WINDOW_S: Final = 60.0
"""Window of the percentiles."""
RATE_WINDOW_S: Final = 5.0
_OLDEST: Final = MAX_RUNNING // 6
_NEWEST_QUEUED: Final = 10
MAX_REGISTRY_ENTRIES: Final = 3000
_ENDS: Final[tuple[Place, ...]] = ("finished", "failed", "canceled")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The system and its sampled requests. If `readable` is False, there are no requests and no statistics."""

    system: System
    readable: bool
    """Whether this Redis user may read requests."""
    running: tuple[RequestSummary, ...]
    ended: tuple[RequestSummary, ...]
    queued: tuple[RequestSummary, ...]
    tokens_per_s: float
    """Over RATE_WINDOW_S, extrapolated from the sampled to all running requests."""
    queue_wait_ms: Percentiles
    ttft_ms: Percentiles
    inter_token_ms: Percentiles
    """Of each request's last TAIL tokens."""
    is_sample: bool
    """Whether requests in the window were left out of the sample."""

    @property
    def slowest(self) -> list[RequestSummary]:
        """Running requests, longest first."""
        return sorted(self.running, key=lambda one: one.queued_us)

    @property
    def newest(self) -> list[RequestSummary]:
        """All sampled requests, newest first."""
        return sorted(chain(self.running, self.ended, self.queued), key=lambda one: one.queued_us, reverse=True)

    @property
    def migrations(self) -> list[Migration]:
        """Takeovers of the sampled requests, latest first."""
        found = chain.from_iterable(one.migrations for one in chain(self.running, self.ended, self.queued))
        return sorted(found, key=lambda one: one.at_us, reverse=True)

    @property
    def running_in_all(self) -> int:
        return sum(queue.running for queue in self.system.queues)

    @property
    def waiting_in_all(self) -> int:
        return sum(queue.waiting for queue in self.system.queues)


def read_snapshot() -> Steps[Snapshot]:
    """Read a snapshot. Raises RedisError if Redis doesn't reply."""
    now = yield from read_system()
    names = [queue.name for queue in now.queues]
    try:
        running = yield from _running([queue.name for queue in now.queues if queue.running])
        ended, cut = yield from _ended(names)
        waiting: list[RequestRef] = []
        for queue in now.queues:
            if queue.waiting:
                waiting += yield from request_summaries.list_queued(queue.name, 0, _NEWEST_QUEUED - 1)
        seen = yield from request_summaries.read_summaries([*running, *ended, *waiting])
    except NoPermissionError:
        cut, seen = [], None
    return _build_snapshot(now, seen, cut)


def _running(queues: Sequence[str]) -> Steps[list[RequestRef]]:
    places: list[tuple[str, Place]] = [(queue, "running") for queue in queues]
    newest = yield from request_summaries.list_registry(places, 0, MAX_RUNNING - 1, newest=True)
    oldest = yield from request_summaries.list_registry(places, 0, _OLDEST - 1, newest=False)
    return [*oldest[:_OLDEST], *newest[: MAX_RUNNING - _OLDEST]]


def _ended(queues: Sequence[str]) -> Steps[tuple[list[RequestRef], list[set[str]]]]:
    """The requests that ended last, and the ID sets that were truncated: each may have older requests left out."""
    places: list[tuple[str, Place]] = [(queue, place) for queue in queues for place in _ENDS]
    most = min(MAX_ENDED, MAX_REGISTRY_ENTRIES // max(1, len(places)))
    found = yield from request_summaries.list_registry(places, 0, most - 1, newest=True)
    parts: defaultdict[tuple[str, Place], set[str]] = defaultdict(set)
    for one in found:
        parts[one.queue, one.place].add(one.request_id)
    kept = found[:MAX_ENDED]
    cut = [part for part in parts.values() if len(part) >= most]
    return kept, [*cut, {one.request_id for one in kept}] if len(found) > MAX_ENDED else cut


def _build_snapshot(now: System, seen: Sequence[RequestSummary] | None, cut: Sequence[set[str]]) -> Snapshot:
    """Build the snapshot. `cut`: truncated sets of ended requests, see `_ended`."""
    sample = seen or ()
    ended = [one for one in sample if one.state.terminal]
    running = [one for one in sample if one.running]
    unseen = max(1.0, sum(queue.running for queue in now.queues) / max(1, len(running)))
    since_us = now.now_us - int(WINDOW_S * 1e6)
    reach_us = max((_oldest_us(ended, part) for part in cut), default=0)
    return Snapshot(
        system=now,
        readable=seen is not None,
        running=tuple(running),
        ended=tuple(ended),
        queued=tuple(one for one in sample if not one.running and not one.state.terminal),
        tokens_per_s=unseen * sum(_tokens_per_s(one, now.now_us, reach_us) for one in running)
        + sum(_tokens_per_s(one, now.now_us, reach_us) for one in ended),
        queue_wait_ms=Percentiles.of(_since(sample, "started_us", "queue_wait_ms", since_us)),
        ttft_ms=Percentiles.of(_since(sample, "first_token_us", "ttft_ms", since_us)),
        inter_token_ms=Percentiles.of(
            (after - before) / 1000 for one in sample for before, after in pairwise(one.tail_us) if after >= since_us
        ),
        is_sample=unseen > 1 or reach_us > since_us,
    )


def _oldest_us(ended: Sequence[RequestSummary], request_ids: set[str]) -> int:
    return min((one.ended_us or 0 for one in ended if one.request_id in request_ids), default=0)


def _since(sample: Sequence[RequestSummary], when: str, what: str, since_us: int) -> list[float]:
    return [getattr(one, what) for one in sample if (getattr(one, when) or 0) >= since_us]


def _tokens_per_s(one: RequestSummary, now_us: int, reach_us: int) -> float:
    """The request's recent token rate, over the window or its tail, whichever is shorter."""
    begin_us = max(now_us - int(RATE_WINDOW_S * 1e6), reach_us)
    counted = [at_us for at_us in one.tail_us if at_us >= begin_us]
    if counted and len(counted) == len(one.tail_us) < one.tokens:
        begin_us, counted = counted[0], counted[1:]
    return len(counted) / max((now_us - begin_us) / 1e6, 1e-3)


def as_json(shot: Snapshot) -> dict[str, Any]:
    """The snapshot as one JSON object: docs/operations.md lists its fields."""
    now = shot.system
    return {
        "at_us": now.now_us,
        "suspended": now.suspended,
        "redis": asdict(now.server) if now.server else None,
        "streams_redis": asdict(now.streams_server) if now.streams_server else None,
        "queues": [asdict(queue) for queue in now.queues],
        "workers": [{**asdict(worker), "alive": worker.alive} for worker in now.workers],
        "waiting": shot.waiting_in_all,
        "running": shot.running_in_all,
        "tokens_per_s": round(shot.tokens_per_s, 3),
        "queue_wait_ms": shot.queue_wait_ms.as_json(),
        "ttft_ms": shot.ttft_ms.as_json(),
        "inter_token_ms": shot.inter_token_ms.as_json(),
        "sampled": {"running": len(shot.running), "ended": len(shot.ended), "queued": len(shot.queued)},
        "requests_readable": shot.readable,
        "slowest": [request_json(one, now.now_us) for one in shot.slowest[:10]],
        "newest": [request_json(one, now.now_us) for one in shot.newest[:10]],
        "migrations": [asdict(one) for one in shot.migrations[:10]],
    }


def request_json(one: RequestSummary, now_us: int) -> dict[str, Any]:
    """One request as a JSON object for `top` and `list`."""
    return {
        "request_id": one.request_id,
        "state": one.state,
        "queue": one.queue,
        "worker": one.worker,
        "tokens": one.tokens,
        "attempts": one.attempts,
        "queued_us": one.queued_us,
        "ended_us": one.ended_us,
        "age_s": round(one.age_s(now_us), 3),
        "queue_wait_ms": one.queue_wait_ms,
        "ttft_ms": one.ttft_ms,
    }
