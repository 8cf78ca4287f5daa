"""A gateway's metrics after requests of every kind: exact counts, scraped over HTTP."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.gateway.events import following
from tests.gateway.live import LiveGateway
from tests.gateway.test_openai import ASKED
from tests.redis_servers import free_port
from tests.scrapes import Scrape, names_of, scrape_with
from tests.waiting import wait_until
from tokenrelay.gateway import metrics
from tokenrelay.gateway.metrics import GatewayMetrics
from tokenrelay.gateway.streams.counters import RedisClock
from tokenrelay.shared.metrics import queue_depths
from tokenrelay.shared.metrics.exposition import Exposition

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import MakeRedisServer
    from tests.gateway.conftest import MakeGateway
    from tests.gateway.live import WakingWriter


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def measured(make_gateway: MakeGateway, port: int) -> Iterator[LiveGateway]:
    gateway = make_gateway(disconnect_grace_s=0.1, first_word_s=0)
    exposition = Exposition("127.0.0.1", port)
    exposition.add(GatewayMetrics(gateway.gateway).families)
    yield gateway
    exposition.close()


def test_counts_are_exact(measured: LiveGateway, port: int, writer: WakingWriter) -> None:
    with measured.client() as http:
        followed = http.post("/requests", json={"prompt": "x"}).json()["request_id"]
        assert Scrape(port).value(queue_depths.WAITING, queue="tokenrelay.weather.default") == 1
        with following(http, f"/requests/{followed}/events") as events:
            wait_until(lambda: measured.gateway.hub.feeds[followed].entries)
            assert Scrape(port).value(metrics.READERS) == Scrape(port).value(metrics.FOLLOWED) == 1
            assert writer.take() == followed
            writer.claim(followed)
            for word in ("It", " is", " sunny"):
                writer.append(followed, word)
            writer.finish(followed)
            assert len(list(events)) == 6
        assert http.get(f"/requests/{followed}/events").status_code == 200, "again, when all is over"
        assert http.get("/requests/nobody-knows-this-one-at-all").status_code == 404
        assert http.request("PROPFIND", "/health").status_code == 405
        assert http.get("/metrics").status_code == 404, "not on the port of the public"
        with http.stream("POST", "/v1/chat/completions", json={"model": "weather", "messages": ASKED, "stream": True}):
            pass  # and leaves
        scrape = scrape_with(port, metrics.DISCONNECT_CANCELS)
    assert scrape.names == names_of(metrics.METRICS), "what docs/metrics.md lists"
    assert scrape.observations(metrics.FIRST_TOKEN) == 1, "the second reader waited for nothing"
    assert scrape.observations(metrics.REQUEST) == scrape.observations(metrics.REQUEST, state="completed") == 1
    assert scrape.value(metrics.FIRST_TOKEN, "_sum") <= scrape.value(metrics.REQUEST, "_sum") < 60
    assert scrape.value(metrics.DELIVERY_LAG, "_sum") < scrape.observations(metrics.DELIVERY_LAG) * 30
    counts = {
        ("/requests", "POST", "202"): 1,
        ("/requests/{request_id}/events", "GET", "200"): 2,
        ("/requests/{request_id}", "GET", "404"): 1,
        ("/v1/chat/completions", "POST", "200"): 1,
        ("none", "GET", "404"): 1,
    }
    for (route, method, status), count in counts.items():
        labels = {"route": route, "method": method, "status": status}
        assert scrape.value(metrics.HTTP_REQUESTS, **labels) == count, (labels, scrape.text)
    assert scrape.value(metrics.HTTP_REQUESTS, method="other", status="405") == 1
    assert scrape.value(metrics.DISCONNECT_CANCELS) == 1
    assert scrape.value(metrics.READERS) == scrape.value(metrics.LEAVING) == 0
    assert scrape.value(queue_depths.WORKERS, model="weather") == 1


def test_refusals_are_counted_by_their_reason(make_gateway: MakeGateway, writer: WakingWriter) -> None:
    gateway = make_gateway(max_queue_depth=1)
    with gateway.client() as http:
        assert [http.post("/requests", json={"prompt": "x"}).status_code for _ in range(3)] == [202, 429, 429]
    assert gateway.gateway.counters.refused.get("queue_full") == 2


def test_redis_errors_are_counted_by_what_they_broke(make_redis_server: MakeRedisServer) -> None:
    server = make_redis_server()
    gateway = LiveGateway(server.url)
    try:
        server.kill()
        with gateway.client() as http:
            assert http.post("/requests", json={"prompt": "x"}).status_code == 503
        assert gateway.gateway.counters.redis_errors.get("answer") == 1
        wait_until(lambda: gateway.gateway.counters.redis_errors.get("follow"))
    finally:
        gateway.stop()


def test_the_clock_is_right_before_anybody_follows(make_gateway: MakeGateway) -> None:
    clock = make_gateway().gateway.counters.clock
    wait_until(lambda: clock._ahead_s)


def test_the_clock_believes_quick_answers() -> None:
    clock = RedisClock()
    clock.start_sample()
    clock.finish_sample(int(clock.now_us()) + 5_000_000)
    first = clock.now_us()
    clock._asked_at -= 10  # an answer that took ten seconds
    clock.finish_sample(0)
    assert clock.now_us() - first < 1_000_000
