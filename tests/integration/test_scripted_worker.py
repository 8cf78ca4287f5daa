"""The scripted worker on a real server: it leaves the same data as a real worker."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import pytest

from tests.workers import MODEL, running_worker
from tokenrelay.producer import GenerationCancelled, Producer
from tokenrelay.shared.redis.connections import connect
from tokenrelay.shared.wire import keys
from tokenrelay.testing import ScriptedWorker, answers, stalls

if TYPE_CHECKING:
    from redis import Redis

    from tests.redis_servers import RedisServer


def shape(redis: Redis, request_id: str) -> dict[str, Any]:
    """All data of a request, without values that differ between requests."""
    entries = cast("list[Any]", redis.xrange(keys.stream(request_id)))
    found = {text(key).replace(request_id, "ID") for key in redis.scan_iter(f"*{request_id}*")}
    return {
        "keys": sorted(found),
        "hash": sorted(redis.hgetall(keys.request(request_id))),
        "entries": [(entry_id, list(fields)) for entry_id, fields in entries],
        "job": sorted(redis.hgetall(keys.rq_job(request_id))),
        "status": redis.hget(keys.rq_job(request_id), "status"),
        "claimed": redis.exists(keys.claimed(keys.queue(MODEL, "default"))),
    }


def text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def test_it_leaves_what_a_real_worker_leaves(redis_server: RedisServer, redis: Redis) -> None:
    producer = Producer(connection=redis)
    with running_worker(redis_server.url):
        real = producer.submit("w1 w2 w3", model=MODEL, max_new_tokens=4)
        real.result(timeout_s=30)
    with ScriptedWorker(redis, model=MODEL, default=answers("a", "b", "c", "d", "e")):
        scripted = producer.submit("w1 w2 w3", model=MODEL, max_new_tokens=4)
        scripted.result(timeout_s=30)
    assert scripted.result().finish_reason == real.result().finish_reason == "length"
    assert shape(redis, scripted.request_id) == shape(redis, real.request_id)


@pytest.mark.parametrize("query", ["?protocol=2", "?protocol=3"])
def test_it_works_on_any_client(redis_server: RedisServer, query: str) -> None:
    with connect(redis_server.url + query) as client:
        producer = Producer(connection=client)
        with ScriptedWorker(client) as worker:
            worker.then(answers("It is sunny.").paced(0.01).migrating(after=1, crashed=True), stalls(after="It"))
            answer = producer.submit("x").result(timeout_s=60)
            assert (answer.text, answer.attempts) == ("It is sunny.", 2)
            stalled = producer.submit("y")
            assert next(iter(stalled)).text == "It"
            stalled.cancel()
            with pytest.raises(GenerationCancelled):
                stalled.result(timeout_s=60)


def test_a_client_that_decodes_is_refused(redis_server: RedisServer) -> None:
    with (
        connect(redis_server.url + "?decode_responses=1") as client,
        pytest.raises(ValueError, match="decode_responses"),
    ):
        ScriptedWorker(client)
