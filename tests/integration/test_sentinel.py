"""Redis behind Sentinels: the primary dies mid-stream, and workers and readers go on at the one that follows it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from anyio import to_thread

from tests.engines import CountingEngine
from tests.readers import Readers
from tests.sentinels import SERVICE, Sentinels
from tests.waiting import wait_until
from tests.workers import MODEL, VOCABULARY, running_worker
from tokenrelay.producer import AsyncProducer, Consumer, Producer
from tokenrelay.shared.errors import RedisUnusable, SettingsError
from tokenrelay.shared.redis.connections import connect, without_password
from tokenrelay.shared.redis.sentinel import SentinelAddress

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tokenrelay.producer import Options

SECRET = "between-you-and-me"
TOKENS = 400
STREAMS = 4
CHOSEN: Options = {"model": MODEL, "seed": 7, "max_new_tokens": TOKENS}


@pytest.fixture
def sentinels(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sentinels]:
    sentinels = Sentinels(tmp_path_factory.mktemp("sentinels"), password=SECRET)
    yield sentinels
    sentinels.close()


@pytest.mark.slow
def test_a_failover_loses_no_token(sentinels: Sentinels) -> None:
    engine = CountingEngine(vocabulary=VOCABULARY, step_delay_s=0.02, slots=STREAMS)
    with (
        running_worker(sentinels.url, engine, slots=STREAMS),
        Producer(sentinels.url) as producer,
        Consumer(sentinels.url) as consumer,
    ):
        generations = producer.submit_many(["w1 w2"] * STREAMS, **CHOSEN)
        readers = Readers([consumer.get(generation.request_id) for generation in generations])
        wait_until(lambda: readers.all_have(20))
        sentinels.fail_over()
        readers.join()
        for generation, seen in zip(generations, readers.seen, strict=True):
            assert len(seen) == generation.result().usage.completion_tokens == TOKENS
            assert [token.token_id for token in generation.tokens()] == seen
            assert generation.status().attempts == 1
    with sentinels.client() as client:
        assert client.info("server")["tcp_port"] == sentinels.replica.port


@pytest.mark.anyio
@pytest.mark.slow
async def test_asyncio_clients_take_the_same_url(sentinels: Sentinels) -> None:
    with running_worker(sentinels.url):
        async with AsyncProducer(sentinels.url) as producer:
            before = await producer.submit("w1", **CHOSEN)
            assert (await before.result()).usage.completion_tokens == TOKENS
            await to_thread.run_sync(sentinels.fail_over)
            after = await producer.submit("w1", **CHOSEN)
            assert (await after.result()).usage.completion_tokens == TOKENS


def test_sentinels_that_know_no_such_service_are_told_without_a_password(sentinels: Sentinels) -> None:
    url = sentinels.url.replace(f"/{SERVICE}/", "/another/")
    with pytest.raises(RedisUnusable, match="service another of its Sentinels") as caught, Producer(url) as producer:
        producer.submit("w1", **CHOSEN)
    assert SECRET not in str(caught.value)


def test_a_url_is_taken_apart() -> None:
    address = SentinelAddress.parse(
        "rediss+sentinel://us%2Fer:p%40ss@a:1,b,[::1]:3/tokens/2?ssl_ca_certs=/ca.pem&sentinel_password=own"
    )
    assert address.hosts == (("a", 1), ("b", 26379), ("::1", 3))
    assert address.service == "tokens"
    tls = {"ssl": True, "ssl_ca_certs": "/ca.pem"}
    assert address.redis == {"username": "us/er", "password": "p@ss", "db": 2, **tls}
    assert {name: value for name, value in address.sentinels.items() if "timeout" not in name} == {
        "password": "own",
        **tls,
    }


@pytest.mark.parametrize(
    ("hosts", "parsed"),
    [
        ("s1:26379,[fd00::1]:26379", (("s1", 26379), ("fd00::1", 26379))),
        ("[fd00::1],s1", (("fd00::1", 26379), ("s1", 26379))),
        ("[fd00::1]:1,[fd00::2]:2,[::1]", (("fd00::1", 1), ("fd00::2", 2), ("::1", 26379))),
    ],
)
@pytest.mark.parametrize("userinfo", ["", ":p%40ss@", "user:p%2Fss@"])
def test_addresses_of_ipv6_stand_anywhere(hosts: str, parsed: tuple[tuple[str, int], ...], userinfo: str) -> None:
    address = SentinelAddress.parse(f"redis+sentinel://{userinfo}{hosts}/mymaster/0")
    assert (address.hosts, address.service, address.redis["db"]) == (parsed, "mymaster", 0)
    with connect(f"redis+sentinel://{userinfo}{hosts}/mymaster/0") as client:
        assert client.connection_pool is not None


@pytest.mark.parametrize(
    "url",
    [
        f"redis+sentinel://:{SECRET}@/tokens/0",
        f"redis+sentinel://:{SECRET}@a:1/",
        f"redis+sentinel://:{SECRET}@a:x/tokens/0",
        f"redis+sentinel://:{SECRET}@a,,b/tokens/0",
        f"redis+sentinel://a/?sentinel_password={SECRET}",
        f"redis+sentinel://:{SECRET}@[::1/tokens/0",
        f"redis+sentinel://:{SECRET}@a,::1]:1/tokens/0",
        f"redis+sentinel://:{SECRET}@[nonsense]:1,a/tokens/0",
    ],
)
def test_a_malformed_url_is_told_without_a_password(url: str) -> None:
    with pytest.raises(SettingsError) as caught:
        connect(url)
    assert SECRET not in str(caught.value)
    assert SECRET not in without_password(url)
