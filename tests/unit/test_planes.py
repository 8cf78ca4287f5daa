"""Every command knows its plane, and a batch is of one: also where both planes are on one server."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.streams import REQUEST_ID
from tokenrelay.shared.redis.batches import AsyncPipeline, Pipeline
from tokenrelay.shared.redis.commands import (
    Batch,
    Call,
    Item,
    MixedPlanesError,
    On,
    batch_plane,
    channels_plane,
    info,
    ping,
    server_time,
)
from tokenrelay.shared.redis.connections import connect, connect_async
from tokenrelay.shared.store import registrations, requests
from tokenrelay.shared.store.record import look
from tokenrelay.shared.store.scripts import SCRIPTS, script
from tokenrelay.shared.wire import keys
from tokenrelay.shared.wire.keys import Plane, plane_of

if TYPE_CHECKING:
    from tokenrelay.shared.redis.commands import Command

pytestmark = pytest.mark.anyio

STREAM = keys.stream(REQUEST_ID)
QUEUE = keys.rq_queue("tokenrelay.weather.default")
NOWHERE = "redis://127.0.0.1:1/0"

PLANES = {
    keys.request(REQUEST_ID): Plane.TOKEN,
    keys.stream(REQUEST_ID): Plane.TOKEN,
    keys.attached(REQUEST_ID): Plane.TOKEN,
    keys.WAKE: Plane.TOKEN,
    keys.ENDED: Plane.TOKEN,
    keys.QUEUED: Plane.QUEUE,
    keys.claimed("q"): Plane.QUEUE,
    keys.maintainer("q"): Plane.QUEUE,
    keys.idempotency("k"): Plane.QUEUE,
    keys.idempotency_mark("k"): Plane.QUEUE,
    keys.of_owner("o"): Plane.QUEUE,
    keys.rq_job(REQUEST_ID): Plane.QUEUE,
    keys.rq_worker("w"): Plane.QUEUE,
    keys.RQ_WORKERS: Plane.QUEUE,
}


@pytest.mark.parametrize("name", PLANES)
def test_each_key_and_channel_has_its_plane(name: str) -> None:
    assert plane_of(name) is plane_of(name.encode()) is PLANES[name]


@pytest.mark.parametrize(
    ("command", "plane"),
    [
        (("XREAD", "COUNT", 1, "BLOCK", 5, "STREAMS", STREAM, keys.stream("b" * 22), "0", "0"), Plane.TOKEN),
        (("EXISTS", QUEUE, keys.rq_queue("other")), Plane.QUEUE),
        (("PUBLISH", keys.WAKE, REQUEST_ID), Plane.TOKEN),
        (("PUBLISH", keys.QUEUED, QUEUE), Plane.QUEUE),
        (look(REQUEST_ID, ("state",)), Plane.TOKEN),
        (registrations.look(b"tokenrelay:{any}:request", ("queues",)), Plane.QUEUE),
        (registrations.time_left(b"\xff"), Plane.QUEUE),
        (server_time(Plane.TOKEN), Plane.TOKEN),
        (info(Plane.QUEUE), Plane.QUEUE),
        (requests.cancel(REQUEST_ID, "test"), Plane.TOKEN),
        (Call(script("admit"), (keys.of_owner("o"),)), Plane.QUEUE),
    ],
)
def test_each_command_has_its_plane(command: Item, plane: Plane) -> None:
    assert batch_plane([command]) is plane


@pytest.mark.parametrize(
    "batch",
    [
        [("LLEN", QUEUE), ("XLEN", STREAM)],
        [("XLEN", STREAM), server_time(Plane.QUEUE)],
        [requests.cancel(REQUEST_ID, "rq"), ("ZREM", keys.claimed("q"), REQUEST_ID)],
        [Call(script("drop"), (keys.rq_job(REQUEST_ID),)), look(REQUEST_ID, ("state",))],
        [("EXISTS", QUEUE, STREAM)],
        [("XREAD", "STREAMS", STREAM, QUEUE, "0", "0")],
        [ping(Plane.TOKEN), ping(Plane.QUEUE)],
    ],
)
async def test_a_batch_that_mixes_planes_is_refused_before_anything_is_sent(batch: Batch) -> None:
    """Nobody listens there: what is refused isn't sent."""
    with connect(NOWHERE, retries=0) as client, pytest.raises(MixedPlanesError, match="of one plane"):
        Pipeline(client).run(batch)
    async with connect_async(NOWHERE, retries=0) as client:
        with pytest.raises(MixedPlanesError, match="of one plane"):
            await AsyncPipeline(client).run(batch, atomic=True)


@pytest.mark.parametrize("command", [("TIME",), ("INFO",), ("PING",)])
def test_a_command_without_a_key_says_whose_server_it_is_for(command: Command) -> None:
    with pytest.raises(MixedPlanesError, match="has no key"):
        batch_plane([("XLEN", STREAM), command])
    assert batch_plane([("XLEN", STREAM), On(Plane.TOKEN, command)]) is Plane.TOKEN


def test_channels_of_both_planes_need_two_subscriptions() -> None:
    assert channels_plane([keys.WAKE, keys.ENDED]) is Plane.TOKEN
    with pytest.raises(MixedPlanesError, match="one connection"):
        channels_plane([keys.WAKE, keys.QUEUED])


def test_every_script_is_of_the_plane_of_its_folder() -> None:
    assert {name: script(name).plane for name in ("append", "claim", "create")} == dict.fromkeys(
        ("append", "claim", "create"), Plane.TOKEN
    )
    assert all(script(name).plane is plane for plane, names in SCRIPTS.items() for name in names)
