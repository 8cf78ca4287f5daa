"""The queues' depths and workers, read from Redis for each scrape. Read-only."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any, Final

from redis.exceptions import RedisError

from tokenrelay.shared.metrics.measures import Metric, family
from tokenrelay.shared.redis.batches import Pipeline
from tokenrelay.shared.redis.commands import ping
from tokenrelay.shared.redis.servers import connected
from tokenrelay.shared.store.registrations import exists
from tokenrelay.shared.wire import keys

if TYPE_CHECKING:
    from tokenrelay.shared.metrics.measures import Family, Sample
    from tokenrelay.shared.redis.commands import Batch
    from tokenrelay.shared.redis.servers import Urls

_TIMEOUT_S: Final = 1.0
"""A scrape times out after ten seconds, and the process's own metrics must get through while Redis can't be reached."""

FRESH_S: Final = 1.0
"""Scrapes within this time share one read, which bounds what frequent scrapes cost Redis."""

REDIS_UP: Final = Metric(
    "tokenrelay_redis_up",
    "gauge",
    "1 where Redis answered this scrape, or one in the second before, else 0; with two servers, where both did.",
)
WAITING: Final = Metric(
    "tokenrelay_queue_waiting_requests",
    "gauge",
    "Requests that wait in the queue. Every process says the same of a queue: take the maximum.",
    ("queue",),
)
CLAIMED: Final = Metric(
    "tokenrelay_queue_claimed_requests", "gauge", "Requests taken off the queue and not ended yet.", ("queue",)
)
WORKERS: Final = Metric("tokenrelay_workers", "gauge", "Engines whose registration is alive.", ("model",))
METRICS: Final = (REDIS_UP, WAITING, CLAIMED, WORKERS)


class QueueDepths:
    """Reads the queues of one model, over connections of its own for each read."""

    def __init__(self, urls: Urls, model: str) -> None:
        self._urls = urls
        self._model = model
        self._lock = threading.Lock()
        self._found: list[Family] = []
        self._stale_at = 0.0

    def families(self) -> list[Family]:
        """The metrics, at most FRESH_S old; only REDIS_UP where Redis can't be reached."""
        with self._lock:
            if time.monotonic() >= self._stale_at:
                self._found = self._read()
                self._stale_at = time.monotonic() + FRESH_S
            return self._found

    def _read(self) -> list[Family]:
        try:
            with connected(self._urls, retries=0, timeout_s=_TIMEOUT_S) as servers:
                pipeline = Pipeline(*servers)
                found = self._read_queues(pipeline)
                for plane in servers.planes:
                    _run(pipeline, [ping(plane)])
                return [family(REDIS_UP, 1), *found]
        except RedisError:
            return [family(REDIS_UP, 0)]

    def _read_queues(self, pipeline: Pipeline) -> list[Family]:
        """Raises redis errors, also for one command that was refused."""
        queues = keys.queues(self._model)
        batch: Batch = [("SMEMBERS", keys.rq_workers(queues[0]))]
        for queue in queues:
            batch += [("LLEN", keys.rq_queue(queue)), ("ZCARD", keys.claimed(queue))]
        members, *counts = _run(pipeline, batch)
        alive = _run(pipeline, [exists(member) for member in members]) if members else []
        waiting: list[Sample] = [((queue,), count) for queue, count in zip(queues, counts[::2], strict=True)]
        claimed: list[Sample] = [((queue,), count) for queue, count in zip(queues, counts[1::2], strict=True)]
        return [(WAITING, waiting), (CLAIMED, claimed), family(WORKERS, sum(alive), self._model)]


def _run(pipeline: Pipeline, batch: Batch) -> list[Any]:
    replies = pipeline.run(batch)
    for reply in replies:
        if isinstance(reply, Exception):
            raise reply
    return replies
