"""The training trace: from the file beside the weights to the gateway's response."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from pydantic import SecretStr

from tests.engines import CountingEngine
from tests.workers import MODEL, VOCABULARY, running_worker, served
from tokenrelay.shared.redis.connections import connect
from tokenrelay.shared.settings import WorkerSettings
from tokenrelay.shared.wire import keys
from tokenrelay.worker.serving.model import training_trace
from tokenrelay.worker.worker import Worker

if TYPE_CHECKING:
    from pathlib import Path

    import httpx
    from redis import Redis

    from tests.gateway.live import WakingWriter
    from tests.redis_servers import RedisServer


def test_a_worker_registers_its_model_s_training_trace(redis_server: RedisServer, http: httpx.Client) -> None:
    trace = training_trace(None)
    assert trace is not None
    with connect(redis_server.url) as connection:
        worker = Worker(
            settings=WorkerSettings(redis_url=SecretStr(redis_server.url)),
            served=replace(served(CountingEngine(vocabulary=VOCABULARY)), training=trace),
            connection=connection,
        )
        worker.registration.register()
        worker.registration.beat()
        try:
            answer = http.get(f"/models/{MODEL}/training")
            assert answer.json() == json.loads(trace)
            assert len(answer.json()["epochs"]) == 5
            assert http.get(f"/v1/models/{MODEL}").json()["training"] is True
        finally:
            worker.registration.remove()
    assert http.get(f"/models/{MODEL}/training").status_code == 404


CONTEXT_FIELDS = ("max_model_len", "context_length", "context_window", "max_context_length")


def test_a_model_s_context_is_told_under_every_name(redis_server: RedisServer, http: httpx.Client) -> None:
    with (
        running_worker(redis_server.url, CountingEngine(vocabulary=VOCABULARY, context_tokens=777)),
        running_worker(redis_server.url, CountingEngine(vocabulary=VOCABULARY, context_tokens=999)),
    ):
        model = http.get(f"/v1/models/{MODEL}").json()
        assert [model[name] for name in CONTEXT_FIELDS] == [777] * 4, "any of the two may take a request"
        assert http.get("/v1/models").json()["data"] == [model]


@pytest.mark.parametrize("registered", [None, "", "many", "-5", b"\xff"])
def test_a_worker_that_registers_no_context(
    http: httpx.Client, redis: Redis, writer: WakingWriter, registered: str | bytes | None
) -> None:
    """A registration of the previous release, or malformed data."""
    if registered is not None:
        redis.hset(keys.rq_worker(writer.name), "context_tokens", registered)
    model = http.get("/v1/models/weather").json()
    assert [model[name] for name in CONTEXT_FIELDS] == [None] * 4


def test_a_model_without_a_trace(http: httpx.Client, writer: WakingWriter) -> None:
    answer = http.get("/models/weather/training")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "no_training")
    assert http.get("/v1/models/weather").json()["training"] is False


def test_a_broken_trace_is_none(http: httpx.Client, redis: Redis, writer: WakingWriter) -> None:
    redis.hset(keys.rq_worker(writer.name), "training", "{")
    assert http.get("/models/weather/training").status_code == 404


def test_only_a_folder_of_ours_has_a_trace(tmp_path: Path) -> None:
    assert training_trace("owner/name") is None
    assert training_trace(str(tmp_path)) is None
    (tmp_path / "trace.json").write_text("{")
    assert training_trace(str(tmp_path)) is None
