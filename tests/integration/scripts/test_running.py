"""How scripts get to the server, and that their headers are true."""

from __future__ import annotations

import itertools
import re
from typing import TYPE_CHECKING

import pytest
from redis.exceptions import ResponseError

from tests.integration.scripts.queue_plane import (
    DEFAULT,
)
from tests.streams import REQUEST_ID
from tests.token_plane import TokenPlane, decoded, reply_word
from tokenrelay.shared.redis.batches import AsyncPipeline, Pipeline
from tokenrelay.shared.redis.commands import Call, ping
from tokenrelay.shared.redis.connections import connect_async
from tokenrelay.shared.store.scripts import SCRIPTS, script
from tokenrelay.shared.wire import keys
from tokenrelay.shared.wire.keys import Plane

if TYPE_CHECKING:
    from redis import Redis

    from tests.redis_servers import RedisServer


def test_one_refused_command_hides_no_neighbours_reply(pipeline: Pipeline, plane: TokenPlane) -> None:
    plane.create()
    pair = (keys.request(REQUEST_ID), keys.stream(REQUEST_ID))
    replies = pipeline.run(
        [("XADD", pair[1], "0-1", "a", "b"), Call(script("cancel"), pair, ("me",)), ping(Plane.TOKEN)]
    )
    assert isinstance(replies[0], ResponseError)
    assert [reply_word(replies[1]), replies[2]] == ["OK", True]
    with pytest.raises(ResponseError):
        reply_word(replies[0])


@pytest.mark.parametrize("atomic", [False, True])
def test_a_server_that_forgot_the_scripts_is_told_again(
    pipeline: Pipeline, redis: Redis, plane: TokenPlane, atomic: bool
) -> None:
    plane.create()
    plane.claim("x1")
    redis.script_flush()
    pair = (keys.request(REQUEST_ID), keys.stream(REQUEST_ID))
    batch = [Call(script("append"), pair, ("1:x1", 1, 1000, "a", 1)), Call(script("renew"), pair, ("1:x1", 1000))]
    assert decoded(pipeline.run([*batch], atomic=atomic)) == [2, ["OK"]]


@pytest.mark.anyio
async def test_asyncio_runs_them_alike(server: RedisServer, redis: Redis) -> None:
    redis.script_flush()
    async with connect_async(server.url) as client:
        pair = (keys.request(REQUEST_ID), keys.stream(REQUEST_ID))
        create = Call(script("create"), pair, ("body", 60_000, 60_000, "", "", DEFAULT, "{}"))
        replies = await AsyncPipeline(client).run([create, Call(script("cancel"), pair, ("me",)), ("NOSUCHCOMMAND",)])
    assert [reply_word(replies[0]), reply_word(replies[1])] == ["OK", "OK"]
    assert isinstance(replies[2], ResponseError)


def test_the_headers_name_every_reply() -> None:
    """`-- Replies:` in a script is what callers, and the tables in docs/request-lifecycle.md, go by."""
    for name in (name for plane in SCRIPTS.values() for name in plane if name not in ("take", "bind", "place")):
        own = "Replies: " + script(name).source(modern=False).rpartition("Replies: ")[2]
        header = "".join(itertools.takewhile(lambda line: line.startswith(("Replies", "--")), own.splitlines(True)))
        named = set(re.findall(r"\b[A-Z]{2}[A-Z_]*\b", re.sub(r"\(.*?\)", "", header))) - {"ARGV", "RQ"}
        returned = set(re.findall(r"return \{ '([A-Z_]+)'", own))
        returned |= {"GAP", "LOST"} if "append_tokens(" in own else set()
        assert returned == named, script
