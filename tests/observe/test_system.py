"""Scrapes of a running system: the bundled model, real processes, and every terminal state."""

from __future__ import annotations

import errno
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from scripts import metrics_docs
from tests.observe.expressions import expressions, resolved
from tests.observe.system import (
    Gateway,
    environment,
    promtool_complaints,
    running_gateway,
    running_prometheus,
    running_worker,
)
from tests.scrapes import names_of, scrape_with
from tests.waiting import wait_until
from tokenrelay.gateway import metrics as gateway_metrics
from tokenrelay.shared.metrics import queue_depths
from tokenrelay.shared.wire import keys
from tokenrelay.worker import metrics

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from redis import Redis

    from tests.redis_servers import RedisServer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]
QUESTION = {"prompt": "What is the weather today?", "temperature": 0}
CHAT = {
    "model": "weather",
    "temperature": 0,
    "stream": True,
    "messages": [{"role": "user", "content": "What is the weather today?"}],
}
LONG = {**QUESTION, "temperature": 1, "ignore_eos": True, "max_new_tokens": 900}


def submitted(http: httpx.Client, body: dict[str, Any]) -> str:
    request_id: str = http.post("/requests", json=body).raise_for_status().json()["request_id"]
    return request_id


def followed(http: httpx.Client, request_id: str) -> dict[str, Any]:
    """The request's status, once its event stream has been read to its end."""
    with http.stream("GET", f"/requests/{request_id}/events") as response:
        for _ in response.iter_bytes():
            pass
    status: dict[str, Any] = http.get(f"/requests/{request_id}").json()
    return status


def past_its_deadline(redis: Redis, request_id: str) -> bool:
    seconds, microseconds = redis.time()
    return int(redis.hget(keys.request(request_id), "deadline_us") or 0) < seconds * 1_000_000 + microseconds


def streams(redis: Redis, request_id: str) -> bool:
    return redis.xlen(keys.stream(request_id)) > 20


def test_every_end_is_counted_where_it_happened(redis_server: RedisServer, redis: Redis) -> None:
    with (
        running_gateway(redis_server.url, DISCONNECT_GRACE_S=0.2) as gateway,
        httpx.Client(base_url=gateway.url, timeout=60) as http,
    ):
        expired = submitted(http, {**QUESTION, "deadline_s": 0.2})
        wait_until(lambda: past_its_deadline(redis, expired))
        assert gateway.scrape().value(queue_depths.WORKERS) == 0
        assert gateway.scrape().value(queue_depths.WAITING) == 1
        with running_worker(redis_server.url) as worker:
            wait_until(lambda: redis.smembers(keys.rq_workers(keys.queue("weather", "default"))), 60)
            for _ in range(3):
                assert http.post("/v1/chat/completions", json=CHAT).raise_for_status().text.endswith("data: [DONE]\n\n")
            cancelled = submitted(http, LONG)
            wait_until(lambda: streams(redis, cancelled))
            assert 0 < worker.scrape().value(metrics.KV_USED) <= 1
            http.post(f"/requests/{cancelled}/cancel").raise_for_status()
            first = scrape_with(worker.port, metrics.ENDS, 5)
            assert first.names == names_of(metrics.METRICS)
            assert first.value(metrics.ENDS, state="completed", reason="stop") == 3
            assert first.value(metrics.ENDS, state="cancelled", reason="cancelled") == 1
            assert first.value(metrics.ENDS, state="expired", reason="deadline") == 1
            assert first.value(metrics.ATTEMPTS) == first.observations(metrics.FIRST_TOKEN) == 4
            assert first.value(metrics.KV_CAPACITY) > 0
            assert first.value(metrics.RESTARTS) == 0

            lost = submitted(http, LONG)
            wait_until(lambda: streams(redis, lost))
            worker.engine.send_signal(signal.SIGKILL)
            answer = followed(http, lost)
            second = scrape_with(worker.port, metrics.ENDS)
        scrape = gateway.scrape()
    assert answer["attempts"] == 2
    assert second.value(metrics.RESTARTS) == second.value(metrics.TAKEOVERS) == second.value(metrics.ATTEMPTS) == 1
    assert second.value(metrics.GENERATED_TOKENS) < 900
    assert second.value(metrics.GENERATED_TOKENS) + second.value(metrics.RECOMPUTED_TOKENS) == 900 + 7
    assert scrape.names == names_of(gateway_metrics.METRICS)
    assert scrape.observations(gateway_metrics.FIRST_TOKEN) in (3, 4), (
        "the lost one's reader came within a second, or later"
    )
    assert scrape.observations(gateway_metrics.REQUEST, state="completed") == 3
    assert scrape.observations(gateway_metrics.REQUEST) == 4, "and the lost one, which was followed to its end"


def test_promtool_finds_nothing_to_complain_of(redis_server: RedisServer, redis: Redis) -> None:
    if shutil.which("promtool") is None:
        pytest.skip("promtool isn't installed")
    with running_worker(redis_server.url) as worker, running_gateway(redis_server.url) as gateway:
        wait_until(lambda: redis.smembers(keys.rq_workers(keys.queue("weather", "default"))), 60)
        with httpx.Client(base_url=gateway.url, timeout=60) as http:
            followed(http, submitted(http, QUESTION))
        expositions = scrape_with(worker.port, metrics.ENDS).text, gateway.scrape().text
    assert [promtool_complaints(exposition) for exposition in expositions] == ["", ""]


def test_prometheus_answers_all_that_the_dashboard_asks(
    redis_server: RedisServer, redis: Redis, tmp_path: Path
) -> None:
    if shutil.which("prometheus") is None:
        pytest.skip("prometheus isn't installed")
    with running_worker(redis_server.url) as worker, running_gateway(redis_server.url) as gateway:
        wait_until(lambda: redis.smembers(keys.rq_workers(keys.queue("weather", "default"))), 60)
        ports = {"worker": worker.port, "gateway": gateway.port}
        with asking(gateway), running_prometheus(tmp_path, ports) as prometheus:
            missing = dict.fromkeys(resolved(expression, "10s") for expression in expressions())
            end = time.monotonic() + 60
            while missing and time.monotonic() < end:
                for expression in list(missing):
                    values = prometheus.query(expression)
                    if values and not any(map(math.isnan, values)):
                        del missing[expression]
                time.sleep(0.5)
            assert not missing, "no data for: " + "\n".join(missing)
            wait_until(lambda: {rule["health"] for rule in prometheus.rules()} == {"ok"}, 30)
            rules = prometheus.rules()
    assert {rule["name"] for rule in rules} == {name for name, *_ in metrics_docs.alerts()}
    assert {rule["name"] for rule in rules if rule["state"] == "firing"} == set()


@contextmanager
def asking(gateway: Gateway) -> Iterator[None]:
    """Questions, one after the other, for as long as the block lasts."""
    over = threading.Event()

    def ask() -> None:
        with httpx.Client(base_url=gateway.url, timeout=60) as http:
            while not over.is_set():
                followed(http, submitted(http, {**QUESTION, "max_new_tokens": 4}))

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@pytest.mark.parametrize(
    "command", [("tokenrelay.worker", "run"), ("tokenrelay.cli", "serve", "--port", "0")], ids=" ".join
)
def test_a_port_that_is_taken_ends_the_process_at_once(redis_server: RedisServer, command: tuple[str, ...]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        settings = environment(redis_server.url, METRICS_PORT=port)
        arguments = [sys.executable, "-m", *command]
        done = subprocess.run(arguments, env=settings, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 2, done.stderr
    assert f"TOKENRELAY_METRICS_PORT: can't listen on 127.0.0.1:{port}" in done.stderr
    assert "Traceback" not in done.stderr
    assert os.strerror(errno.EADDRINUSE) in done.stderr
