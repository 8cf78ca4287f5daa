"""One client, several event loops, threads or processes: what is allowed, and what is refused at once."""

from __future__ import annotations

import asyncio
import os
import threading
from typing import TYPE_CHECKING, Any

import pytest

from tests.writers import serving
from tokenrelay.producer import AsyncConsumer, AsyncGeneration, AsyncProducer, Producer, WrongEventLoop

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from tests.redis_servers import RedisServer

_ENOUGH_S = 30.0

USES: dict[str, Callable[[AsyncProducer, AsyncGeneration], Coroutine[Any, Any, Any]]] = {
    "submit": lambda producer, _: producer.submit("x"),
    "submit_many": lambda producer, _: producer.submit_many(["x", "y"]),
    "submit with a key": lambda producer, _: producer.submit("x", idempotency_key="k"),
    "get": lambda producer, generation: producer.get(generation.request_id),
    "status": lambda _, generation: generation.status(),
    "result": lambda _, generation: generation.result(),
    "cancel": lambda _, generation: generation.cancel(),
    "aclose": lambda producer, _: producer.aclose(),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES.keys())
def test_a_second_asyncio_run_is_told(
    redis_server: RedisServer, use: Callable[[AsyncProducer, AsyncGeneration], Coroutine[Any, Any, Any]]
) -> None:
    producer = AsyncProducer(redis_server.url)
    with asyncio.Runner() as first, asyncio.Runner() as second:
        generation = first.run(producer.submit("x"))
        with pytest.raises(WrongEventLoop, match="make one for each loop"):
            second.run(asyncio.wait_for(use(producer, generation), _ENOUGH_S))
        assert first.run(generation.cancel())  # where it belongs, it's as good as before
        first.run(producer.aclose())


@pytest.mark.filterwarnings("ignore::tokenrelay.producer.NoWorkerWarning")  # where the machine is slow
def test_a_second_threads_loop_is_told_while_the_first_one_waits(redis_server: RedisServer) -> None:
    """Both would wait in one XREAD, made on the first one's loop: the second would never be woken."""
    producer = AsyncProducer(redis_server.url)
    raised: list[BaseException] = []

    async def first() -> str:
        generation = await producer.submit("x")
        waiting = asyncio.ensure_future(generation.result())
        await asyncio.to_thread(elsewhere, generation)
        assert not waiting.done()
        with serving(redis_server.url):
            answer = await waiting
        await producer.aclose()
        return answer.text

    def elsewhere(generation: AsyncGeneration) -> None:
        try:
            asyncio.run(asyncio.wait_for(generation.result(), _ENOUGH_S))
        except BaseException as error:  # noqa: BLE001  looked at in the test's thread
            raised.append(error)

    assert asyncio.run(first()) == "It is sunny and warm."
    assert [type(error) for error in raised] == [WrongEventLoop]


def test_of_many_loops_that_begin_at_once_one_gets_the_client(redis_server: RedisServer) -> None:
    for _ in range(5):
        consumer = AsyncProducer(redis_server.url)
        together = threading.Barrier(8)
        outcomes: list[str] = []

        async def use(consumer: AsyncProducer = consumer, together: threading.Barrier = together) -> str:
            together.wait()
            try:
                await (await consumer.submit("x")).cancel()
                await consumer.aclose()
            except WrongEventLoop:
                return "told"
            return "served"

        def run(outcomes: list[str] = outcomes, use: Callable[[], Coroutine[Any, Any, str]] = use) -> None:
            outcomes.append(asyncio.run(asyncio.wait_for(use(), _ENOUGH_S)))

        threads = [threading.Thread(target=run) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(outcomes) == ["served", *["told"] * 7]


def test_a_client_made_outside_of_any_loop_is_taken_by_the_first(redis_server: RedisServer) -> None:
    async def use(client: AsyncConsumer) -> None:
        async with client:
            pass

    asyncio.run(use(AsyncConsumer(redis_server.url)))


def test_threads_share_a_producer(redis_server: RedisServer) -> None:
    texts: list[str] = []
    with serving(redis_server.url), Producer(redis_server.url) as producer:
        threads = [threading.Thread(target=lambda: texts.append(producer.submit("x").result().text)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert texts == ["It is sunny and warm."] * 8


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")  # Python 3.12 and newer, of any fork here
def test_a_forked_child_goes_on_with_a_producer_and_its_handles(redis_server: RedisServer) -> None:
    with serving(redis_server.url), Producer(redis_server.url) as producer:
        generation = producer.submit("x")
        child = os.fork()
        if not child:
            same = generation.result().text == "It is sunny and warm."
            os._exit(0 if same and producer.submit("x").result().text == "It is sunny and warm." else 1)
        assert generation.result().text == producer.submit("x").result().text == "It is sunny and warm."
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
