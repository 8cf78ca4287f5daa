"""The gateway with its own Redis user: it has the permissions it needs, and few others."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
from pydantic import SecretStr
from redis.exceptions import NoPermissionError

from tests.gateway.events import following
from tests.gateway.live import LiveGateway, WakingWriter
from tests.gateway.test_tenants import ALICE, KEYS
from tests.redis_servers import skip_before_redis_7
from tests.waiting import wait_until
from tokenrelay.shared.redis.connections import connect
from tokenrelay.shared.wire import keys

if TYPE_CHECKING:
    from collections.abc import Iterator

    from redis import Redis

    from tests.conftest import MakeRedisServer

DEPLOY: Final = Path(__file__).parents[2] / "deploy"


@pytest.fixture
def admin(make_redis_server: MakeRedisServer) -> Iterator[Redis]:
    with make_redis_server().client() as client:
        yield client


@pytest.fixture
def url(admin: Redis, tmp_path: Path) -> str:
    """The server with the gateway's user from deploy/credentials.sh."""
    skip_before_redis_7(admin, "a user has no selectors")
    script = ["sh", str(DEPLOY / "credentials.sh"), str(DEPLOY / "users.acl"), str(tmp_path)]
    port = admin.connection_pool.connection_kwargs["port"]
    address = {"PATH": os.environ["PATH"], "REDIS_ADDRESS": f"127.0.0.1:{port}"}
    subprocess.run(script, check=True, env=address)
    lines = (tmp_path / "acl" / "users.acl").read_text("utf-8").splitlines()
    (line,) = (line for line in lines if line.startswith("user gateway "))
    admin.execute_command("ACL", "SETUSER", *line.split()[1:])  # type: ignore[no-untyped-call]
    return (tmp_path / "gateway" / "redis_url").read_text("utf-8").strip()


def test_it_can_do_all_that_it_does(admin: Redis, url: str) -> None:
    writer = WakingWriter(admin)
    writer.appear()
    gateway = LiveGateway(url, api_keys=SecretStr(KEYS), disconnect_grace_s=0.1, first_word_s=0)
    try:
        with gateway.client(Authorization=f"Bearer {ALICE}") as client:
            assert client.get("/health").status_code == 200
            assert client.get("/v1/models").json()["data"][0]["id"] == "weather"
            headers = {"Idempotency-Key": "k"}
            first = client.post("/requests", json={"prompt": "x"}, headers=headers)
            assert first.status_code == 202, first.text
            request_id = first.json()["request_id"]
            assert client.post("/requests", json={"prompt": "x"}, headers=headers).json() == first.json()
            assert writer.take() == request_id
            with following(client, f"/requests/{request_id}/events") as events:
                assert next(events).kind == "queued"
                writer.claim(request_id)
                writer.append(request_id, "It")
                assert [next(events).kind for _ in range(2)] == ["started", "token"]
                assert client.post(f"/requests/{request_id}/cancel").json()["state"] == "cancelled"
                assert next(events).kind == "cancelled"
            body = {"model": "weather", "messages": [{"role": "user", "content": "x"}], "stream": True}
            with client.stream("POST", "/v1/chat/completions", json=body) as response:
                left = response.headers["x-request-id"]
            wait_until(lambda: client.get(f"/requests/{left}").json()["state"] == "cancelled")
            assert client.get(f"/requests/{left}/trace").status_code == 200
            late = client.post("/requests", json={"prompt": "x", "deadline_s": 0.1}).json()["request_id"]
            with following(client, f"/requests/{late}/events") as events:
                assert list(events)[-1].kind == "expired"
    finally:
        gateway.stop()


@pytest.mark.parametrize(
    "command",
    [
        ("KEYS", "*"),
        ("SCAN", "0"),
        ("LRANGE", keys.rq_queue(keys.queue("weather", "default")), "0", "-1"),
        ("ZRANGE", keys.claimed(keys.queue("weather", "default")), "0", "-1"),
        ("FLUSHALL",),
        ("CONFIG", "GET", "*"),
        ("HSET", keys.rq_worker("w"), "a", "b"),
        ("SUBSCRIBE", "rq:pubsub:w"),
        ("EVAL", "return 1", "0"),
    ],
)
def test_it_can_do_no_more(url: str, command: tuple[str, ...]) -> None:
    with connect(url) as client, pytest.raises(NoPermissionError):
        client.execute_command(*command)
