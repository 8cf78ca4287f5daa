"""The worker that maintains the queues hangs: others take the maintenance over, and its requests."""

from __future__ import annotations

import threading
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from tests.engines import CountingEngine
from tests.integration.test_worker import result, state, words
from tests.integration.test_worker_faults import BAD, SICK, fussy
from tests.waiting import wait_until
from tests.workers import MODEL, VOCABULARY, running_worker, submit
from tokenrelay.shared import keys

if TYPE_CHECKING:
    from redis import Redis

    from tests.redis_servers import RedisServer
    from tokenrelay.shared.commands import Pipeline

NOW = datetime.now(UTC)
LOCK = keys.maintainer(keys.queues(MODEL)[0])


def test_a_maintainer_whose_loop_hangs_keeps_its_requests_from_nobody(
    redis_server: RedisServer, redis: Redis, pipeline: Pipeline
) -> None:
    hanging, go_on = threading.Event(), threading.Event()

    def hang() -> Any:
        hanging.set()
        go_on.wait(60)
        return f"w{BAD}"

    chosen: dict[str, Any] = {"lease_ms": 1000, "suspicion_ms": 100, "drain_timeout_s": 0}
    engine = CountingEngine(vocabulary=VOCABULARY, step_delay_s=0.01)
    with running_worker(redis_server.url, engine, tokenizer=fussy(at_decode=hang), **chosen):
        wait_until(lambda: redis.exists(LOCK))
        sick = submit(pipeline, NOW, seed=SICK, max_new_tokens=40)
        try:
            wait_until(hanging.is_set)
            with running_worker(redis_server.url, **chosen):
                wait_until(lambda: state(redis, sick) == "incomplete", 30)
        finally:
            go_on.set()
    got = result(redis, sick)
    assert (got.text, got.attempts) == (words(SICK, 40), 2)
