"""Two servers whose clocks are an hour apart: no time of one is compared with the other's."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from tests.redis_servers import with_wrong_clock
from tests.workers import MODEL, running_worker
from tokenrelay.cli.ops.system import read_system
from tokenrelay.producer import NoWorkerWarning, Producer
from tokenrelay.producer._core.drivers import Driver
from tokenrelay.shared.errors import GenerationExpired
from tokenrelay.shared.redis.batches import Pipeline
from tokenrelay.shared.store import requests
from tokenrelay.shared.store.jobs import Take, take_call
from tokenrelay.shared.store.replies import Granted
from tokenrelay.shared.store.requests import Claimant, Prompt
from tokenrelay.shared.wire import keys
from tokenrelay.worker.maintenance.repairs import UNCLAIMED_MS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import MakeRedisServer
    from tests.redis_servers import RedisServer
    from tokenrelay.shared.store.jobs import Execution

HOUR_S = 3600
DEAD = "dead"


@pytest.fixture(params=[HOUR_S, -HOUR_S], ids=["ahead", "behind"])
def streams(request: pytest.FixtureRequest, make_redis_server: MakeRedisServer) -> RedisServer:
    """The token plane's server; its clock is wrong."""
    return with_wrong_clock(make_redis_server, request.param)


@pytest.fixture
def queues(make_redis_server: MakeRedisServer) -> RedisServer:
    return make_redis_server()


@pytest.fixture
def producer(queues: RedisServer, streams: RedisServer) -> Iterator[Producer]:
    with Producer(queues.url, streams_url=streams.url) as producer:
        yield producer


@pytest.fixture
def pipeline(queues: RedisServer, streams: RedisServer) -> Iterator[Pipeline]:
    with queues.client() as queue, streams.client() as token:
        yield Pipeline(queue, token)


def taken(pipeline: Pipeline) -> Execution:
    """A job that a worker takes, which then dies."""
    (job,) = pipeline.ask(take_call(Take(DEAD, keys.queues(MODEL), ("x1",), 60)))
    return job.execution


def test_the_clocks_differ(pipeline: Pipeline) -> None:
    apart_s = pipeline.servers.token.time()[0] - pipeline.servers.queue.time()[0]
    assert HOUR_S - 60 < abs(apart_s) < HOUR_S + 60


def test_a_deadline_is_the_token_planes(producer: Producer, pipeline: Pipeline) -> None:
    generation = producer.submit("x", deadline_s=2.0)
    assert 0 < generation.status().seconds_left <= 2
    (queue,) = Driver(*pipeline.servers).run(read_system()).queues
    assert queue.oldest_wait_s is not None
    assert queue.oldest_wait_s < HOUR_S / 2
    with pytest.warns(NoWorkerWarning), pytest.raises(GenerationExpired):
        generation.result(timeout_s=60)


def test_a_claim_that_never_came_is_dated_by_the_queue_plane(
    queues: RedisServer, streams: RedisServer, producer: Producer, pipeline: Pipeline
) -> None:
    """Too early, and it would be taken from a worker that is about to claim it; never, and it would hang."""
    generation = producer.submit("w1", model=MODEL, max_new_tokens=4)
    began = time.monotonic()
    assert taken(pipeline).job_id == generation.request_id
    with running_worker(queues.url, streams_url=streams.url) as worker:
        assert len(generation.result(timeout_s=60).tokens) == 4
        assert UNCLAIMED_MS / 1000 < worker.threads.figures.queue_wait_s.sum < HOUR_S / 2
    assert time.monotonic() - began > UNCLAIMED_MS / 1000


def test_a_lease_is_the_token_planes(
    queues: RedisServer, streams: RedisServer, producer: Producer, pipeline: Pipeline
) -> None:
    generation = producer.submit("w1", model=MODEL, max_new_tokens=4)
    execution = taken(pipeline)
    claimant = Claimant(DEAD, MODEL, "counting-1", 3000, 3, 500)
    began = time.monotonic()
    granted = pipeline.ask(requests.claim(execution.job_id, execution.execution_id, claimant, Prompt(7, 1, "[1]")))
    assert isinstance(granted, Granted)
    with running_worker(queues.url, streams_url=streams.url):
        assert len(generation.result(timeout_s=60).tokens) == 4
        assert time.monotonic() - began > 3
        assert generation.status().attempts == 2
