"""Readers of a stream that Redis partly lost in a failover and a worker wrote again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.gateway.events import following
from tests.waiting import wait_until
from tests.writers import rewrite
from tokenrelay.shared.wire import keys

if TYPE_CHECKING:
    import httpx
    from redis import Redis

    from tests.gateway.live import LiveGateway, WakingWriter


def test_a_past_that_came_out_the_same_is_no_change(
    http: httpx.Client, gateway: LiveGateway, writer: WakingWriter, running: str, redis: Redis
) -> None:
    with following(http, f"/requests/{running}/events") as events:
        seen = [next(events) for _ in range(5)]
        feed = gateway.gateway.hub.feeds[running]
        rewrite(redis, running, 3)
        redis.publish(keys.WAKE, running)
        writer.append(running, " and")
        writer.finish(running)
        seen += list(events)
        wait_until(lambda: not feed.rechecking)
    assert [event.last_id for event in seen] == ["0-1", "0-2", "1-0", "2-0", "3-0", "4-0", "4-1"]


def test_readers_that_are_ahead_of_what_redis_has_wait(http: httpx.Client, writer: WakingWriter, running: str) -> None:
    with following(http, f"/requests/{running}/events") as events:
        seen = [next(events) for _ in range(5)]
        writer.lose(running, 2)
        writer.append(running, " sunny")
        writer.append(running, " and")
        writer.finish(running)
        seen += list(events)
    assert [event.last_id for event in seen] == ["0-1", "0-2", "1-0", "2-0", "3-0", "4-0", "4-1"]


def test_a_past_that_came_out_differently_is_said(http: httpx.Client, running: str, redis: Redis) -> None:
    with following(http, f"/requests/{running}/events") as events:
        for _ in range(5):
            next(events)
        rewrite(redis, running, 3, text=b"That")  # the last token is as it was
        redis.publish(keys.WAKE, running)
        (said,) = list(events)
    assert "entry 1-0 has changed" in said.data


def test_an_end_before_what_was_read_is_said(http: httpx.Client, writer: WakingWriter, running: str) -> None:
    with following(http, f"/requests/{running}/events") as events:
        for _ in range(5):
            next(events)
        writer.lose(running, 2)
        writer.finish(running)
        (said,) = list(events)
    assert "ended before 3-0, which was already read" in said.data


def test_an_event_that_is_gone_is_doubted_too(
    http: httpx.Client, gateway: LiveGateway, writer: WakingWriter, running: str, redis: Redis
) -> None:
    """The last read entry is missing, and the stream continues without it."""
    with following(http, f"/requests/{running}/events") as events:
        seen = [next(events) for _ in range(5)]
        redis.xadd(
            keys.stream(running), {"event": "migrated", "at_us": 1, "worker": "w", "attempt": 2, "resumed_at": 4}, "3-1"
        )
        redis.publish(keys.WAKE, running)
        seen.append(next(events))
        rewrite(redis, running, 3)
        redis.publish(keys.WAKE, running)
        writer.append(running, " and")
        writer.finish(running)
        seen += list(events)
    assert [event.last_id for event in seen] == ["0-1", "0-2", "1-0", "2-0", "3-0", "3-1", "4-0", "4-1"]
