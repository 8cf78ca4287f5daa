"""How long an answer may be: the caller's limit, the operator's, and what the model's context leaves."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.engines import CountingEngine
from tests.workers import MODEL, VOCABULARY, running_worker
from tokenrelay.producer import Producer
from tokenrelay.shared.settings import ProducerSettings
from tokenrelay.shared.wire import keys

if TYPE_CHECKING:
    from collections.abc import Iterator

    from redis import Redis

    from tests.redis_servers import RedisServer

CONTEXT = 600
PROMPT = "w1 w2 w3"


@pytest.fixture
def worker(redis_server: RedisServer) -> Iterator[None]:
    """A worker whose engine never ends an answer by itself."""
    with running_worker(redis_server.url, CountingEngine(vocabulary=VOCABULARY, context_tokens=CONTEXT)):
        yield


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize(
    ("given", "operators", "tokens"),
    [
        (None, None, CONTEXT - 3),
        (32_000, None, CONTEXT - 3),
        (400, None, 400),
        (None, 300, 300),
        (32_000, 300, 300),
    ],
)
def test_the_smallest_of_three_limits_ends_an_answer(
    redis_server: RedisServer, redis: Redis, given: int | None, operators: int | None, tokens: int
) -> None:
    """No limit of ours cuts an answer whose caller gave none: 256 once did, whatever the model could hold."""
    settings = ProducerSettings() if operators is None else ProducerSettings(max_new_tokens_limit=operators)
    with Producer(redis_server.url, settings=settings) as producer:
        generation = producer.submit(PROMPT, model=MODEL, max_new_tokens=given)
        answer = generation.result(timeout_s=30)
    assert (answer.usage.completion_tokens, answer.finish_reason) == (tokens, "length")
    stored = redis.hget(keys.request(generation.request_id), "request")
    assert isinstance(stored, bytes)
    limit = settings.max_new_tokens_limit
    assert json.loads(stored)["max_new_tokens"] == min(given or limit, limit), "a worker of any version reads a number"
