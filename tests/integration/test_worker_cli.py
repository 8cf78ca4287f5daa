"""`tokenrelay-worker` as its users start it: what it says when it can't."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.families.folders import tiny_config, write_folder
from tokenrelay.shared.wire import keys

if TYPE_CHECKING:
    from pathlib import Path

    from redis import Redis

    from tests.conftest import MakeRedisServer
    from tests.redis_servers import RedisServer


def start(*arguments: str, **settings: str) -> tuple[int, str]:
    """Exit code and standard error of `tokenrelay-worker run`."""
    environment = {**os.environ, **{f"TOKENRELAY_{name}": value for name, value in settings.items()}}
    command = [sys.executable, "-m", "tokenrelay.worker", "run", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, check=False)
    return done.returncode, done.stderr


def said(stderr: str) -> str:
    """The one line for the user."""
    (line,) = [line for line in stderr.splitlines() if line.startswith("tokenrelay-worker: ")]
    assert "Traceback" not in stderr
    return line


@pytest.mark.parametrize("model", ["/nonexistent/model", "./nope"])
def test_an_unknown_model_folder(redis_server: RedisServer, model: str) -> None:
    code, stderr = start("--model", model, REDIS_URL=redis_server.url)
    assert code == 2
    assert f"there is no model folder {model}" in said(stderr)


@pytest.mark.slow
def test_a_folder_without_safetensors(redis_server: RedisServer, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    code, stderr = start("--model", str(tmp_path), "--served-model", "mine", REDIS_URL=redis_server.url)
    assert code == 1
    assert "no *.safetensors" in said(stderr)


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [(), ("--burst",)], ids=["supervised", "burst"])
def test_a_model_that_continuous_batching_cannot_compute(
    redis_server: RedisServer, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    write_folder(tmp_path, tiny_config("bloom"))
    code, stderr = start("--model", str(tmp_path), "--served-model", "bloom", *arguments, REDIS_URL=redis_server.url)
    assert code == 1
    assert "BloomForCausalLM can't be served: its attention or its state doesn't go through" in said(stderr)


@pytest.mark.slow
def test_too_little_memory_for_the_kv_cache(redis_server: RedisServer) -> None:
    code, stderr = start("--kv-cache-tokens", str(10**12), REDIS_URL=redis_server.url)
    assert code == 1
    assert "not enough memory for the KV cache" in said(stderr)


def test_an_unknown_setting() -> None:
    code, stderr = start(SLOTZ="4")
    assert code == 2
    assert "TOKENRELAY_SLOTZ: unknown setting" in said(stderr)


def test_no_redis_is_said_without_the_password() -> None:
    code, stderr = start(REDIS_URL="redis://:secret-word@127.0.0.1:1/0")
    assert code == 3
    assert "is it running there?" in said(stderr)
    assert "secret-word" not in stderr


def test_a_wrong_password_is_said_without_it(make_redis_server: MakeRedisServer) -> None:
    server = make_redis_server(password="right-word")
    code, stderr = start(REDIS_URL=f"redis://:wrong-word@127.0.0.1:{server.port}/0")
    assert code == 3
    assert "check user and password" in said(stderr)
    assert "wrong-word" not in stderr


@pytest.mark.slow
@pytest.mark.parametrize(("options", "name"), [((), "twin.0"), (("--burst",), "twin")])
def test_a_name_that_is_taken(redis_server: RedisServer, redis: Redis, options: tuple[str, ...], name: str) -> None:
    """Said behind the loading of the model, whose engine must not keep the process from ending."""
    redis.hset(keys.rq_worker(name), "birth", "2026-01-01T00:00:00Z")
    code, stderr = start("--name", "twin", *options, REDIS_URL=redis_server.url)
    redis.delete(keys.rq_worker(name))
    assert code == 2
    assert f"a worker named '{name}' is alive" in said(stderr)
