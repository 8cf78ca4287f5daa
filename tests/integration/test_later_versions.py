"""Requests of the next wire version among this one's workers, readers and gateways: docs/wire.md, "Old processes"."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import pytest

from tests.integration.test_repairs import redis_server_url
from tests.integration.test_worker import QUEUE, refused, result
from tests.waiting import wait_until
from tests.workers import MODEL, running_worker, submit
from tokenrelay.producer import Consumer, ProtocolError
from tokenrelay.shared.redis.batches import Pipeline
from tokenrelay.shared.redis.commands import Call
from tokenrelay.shared.store.jobs import Take, take_call
from tokenrelay.shared.wire import keys
from tokenrelay.shared.wire.entries import State
from tokenrelay.worker.maintenance.recovery import release

if TYPE_CHECKING:
    from redis import Redis

    from tests.readers import Background
    from tests.writers import Writer
    from tokenrelay.producer import Generation
    from tokenrelay.shared.redis.commands import Batch

NOW: Final = datetime.now(UTC)
PREEMPTED: Final = {"event": "preempted", "at_us": 5, "worker": "w2", "attempt": 1, "priority": "high"}


def insert(redis: Redis, request_id: str, entry_id: str, fields: dict[Any, Any]) -> None:
    """Write an event as a later version's script does: the hash counts it."""
    redis.xadd(keys.stream(request_id), fields, id=entry_id)
    redis.hset(keys.request(request_id), "events", entry_id.partition("-")[2])


def test_an_event_of_a_later_version_is_skipped(
    running: Generation, writer: Writer, background: Background, redis: Redis
) -> None:
    """By readers that were there before and that come after, and by the scripts that number the events behind it."""
    reader = background.start(lambda: [entry.kind for entry in running.entries()])
    insert(redis, running.request_id, "3-1", PREEMPTED)
    writer.append(running.request_id, " and")
    insert(redis, running.request_id, "4-1", PREEMPTED)
    insert(redis, running.request_id, "4-2", {**PREEMPTED, "event": "forked"})
    writer.finish(running.request_id)
    kinds = ["queued", "started", *["token"] * 4, "completed"]
    assert reader.result(60) == kinds
    assert [entry.kind for entry in running.entries()] == kinds
    assert [event.kind for event in running.events()] == ["queued", "started", "completed"]
    assert [token.index for token in running.tokens(after=3)] == [4]
    answer = running.result()
    assert (answer.text, answer.state) == ("It is sunny and", State.COMPLETED)


def test_a_reader_waits_behind_an_event_that_it_does_not_know(
    running: Generation, writer: Writer, background: Background, redis: Redis
) -> None:
    """Were its place still before the event, each read would find it again at once: a loop without a pause."""
    reader = background.start(lambda: [entry.kind for entry in running.entries()])
    insert(redis, running.request_id, "3-1", PREEMPTED)
    wait_until(lambda: redis.info("clients")["blocked_clients"])
    writer.finish(running.request_id)
    assert reader.result(60)[-1] == "completed"


def test_an_end_of_a_later_version_is_an_error_that_says_so(running: Generation, redis: Redis) -> None:
    end = {"event": "refused", "at_us": 5, "text": "", "finish_reason": "policy"}
    insert(redis, running.request_id, "3-1", end)
    with pytest.raises(ProtocolError, match="unknown terminal event 'refused': a newer version may have written it"):
        list(running.entries())


def later(redis: Redis, request_id: str) -> dict[bytes, bytes]:
    """Make the request one of version 3, with what this version doesn't know; its hash."""
    key = keys.request(request_id)
    raw = redis.hget(key, "request")
    assert isinstance(raw, bytes)
    body: dict[str, Any] = json.loads(raw)
    for left_to_the_claim in ("temperature", "top_k", "top_p"):
        del body[left_to_the_claim]
    body |= {"min_p": 0.1, "response_format": {"type": "regex", "pattern": "a+"}, "prompt": None}
    body["messages"] = [{"role": "tool", "content": None, "tool_call_id": "call_1"}]
    redis.hset(key, mapping={"wire": 3, "request": json.dumps(body)})
    return redis.hgetall(key)  # type: ignore[return-value]


def test_a_worker_leaves_a_request_that_it_can_not_even_read_to_a_later_one(redis: Redis, pipeline: Pipeline) -> None:
    """It isn't failed for its unknown fields, and the worker goes on with the requests behind it."""
    request_id = submit(pipeline, NOW)
    before = later(redis, request_id)
    with running_worker(redis_server_url(redis)) as worker:
        wait_until(lambda: refused(worker))
        assert result(redis, submit(pipeline, NOW)).state is State.INCOMPLETE
    assert redis.hgetall(keys.request(request_id)) == before
    assert redis.lrange(keys.rq_queue(QUEUE), 0, -1) == [request_id.encode()]
    with Consumer(url=redis_server_url(redis)) as consumer:
        status = consumer.get(request_id).status()
        assert (status.state, status.tokens) == (State.QUEUED, 0)


class LaterReplies(Pipeline):
    """Gives one request's scripts a reply that only a later version would know."""

    def __init__(self, pipeline: Pipeline, request_id: str) -> None:
        super().__init__(*pipeline.servers)
        self.odd = request_id

    def run(self, batch: Batch, *, atomic: bool = False) -> list[Any]:
        replies = super().run(batch, atomic=atomic)
        odd = [isinstance(item, Call) and keys.request(self.odd) in item.keys for item in batch]
        return [[b"PARKED", b"later"] if is_odd else reply for is_odd, reply in zip(odd, replies, strict=True)]


def test_a_reply_that_nobody_knows_keeps_no_neighbour_from_its_release(redis: Redis, pipeline: Pipeline) -> None:
    """A dead worker's requests are released together."""
    ids = [submit(pipeline, NOW) for _ in range(3)]
    jobs = pipeline.ask(take_call(Take("dead", keys.queues(MODEL), ("x1", "x2", "x3"), 60)))
    held = [job.execution for job in jobs]
    assert release(LaterReplies(pipeline, ids[0]), held, crashed=True, retention_s=60) == 2
    assert [redis.hget(keys.rq_job(one), "status") for one in ids] == [b"started", b"queued", b"queued"]
