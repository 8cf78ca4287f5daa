"""A gateway in its own process, and clients that disconnect at random times."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, Self

import httpx
import psutil

from benchmarks.children import ROOT
from tests.waiting import wait_until

if TYPE_CHECKING:
    import random
    from pathlib import Path

_COMMAND: Final = (sys.executable, "-m", "tokenrelay.cli", "serve", "--port", "0")


class GatewayProcess:
    """Context manager that runs `tokenrelay serve`; settings by name."""

    def __init__(self, redis_url: str, log: Path, **settings: str) -> None:
        given = {f"TOKENRELAY_{name.upper()}": value for name, value in settings.items()}
        self._environment = {**os.environ, "TOKENRELAY_REDIS_URL": redis_url, **given}
        self._log = log
        self._process: subprocess.Popen[str] | None = None
        self.url = ""

    def __enter__(self) -> Self:
        self._process = process = subprocess.Popen(
            _COMMAND, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=self._environment
        )
        assert process.stderr
        self.url = process.stderr.readline().strip()
        threading.Thread(target=self._keep_log, args=(process.stderr,), daemon=True).start()
        wait_until(self._answers, 30)
        return self

    def __exit__(self, *_: object) -> None:
        if self._process:
            self._process.terminate()
            self._process.wait(20)

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.url.removeprefix("http://").partition(":")
        return host, int(port)

    @property
    def connections(self) -> int:
        """Number of client connections."""
        assert self._process
        found = psutil.Process(self._process.pid).net_connections("tcp")
        return sum(each.laddr.port == self.address[1] and each.status == psutil.CONN_ESTABLISHED for each in found)

    @property
    def cpu_s(self) -> float:
        """Its CPU time, including the kernel's."""
        assert self._process
        times = psutil.Process(self._process.pid).cpu_times()
        return float(times.user + times.system)

    def resident_mib(self) -> float:
        """Its resident size."""
        assert self._process
        return float(psutil.Process(self._process.pid).memory_info().rss) / (1 << 20)

    def _answers(self) -> bool:
        with suppress(httpx.TransportError):
            return httpx.get(f"{self.url}/health", timeout=5).status_code == 200
        return False

    def _keep_log(self, lines: Any) -> None:
        with self._log.open("a") as log:
            log.writelines(lines)


def leave_somewhere(address: tuple[str, int], body: bytes, draw: random.Random) -> None:
    """Request a streamed chat, and disconnect before, during or after the first chunk."""
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: gateway\r\nContent-Type: application/json\r\n"
    asked = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
    with socket.create_connection(address, timeout=30) as connection:
        connection.sendall(asked[: draw.choice((len(asked), len(asked), len(asked) - 1, 20))])
        if draw.random() < 0.5:
            connection.settimeout(0.05)
            with suppress(TimeoutError):
                connection.recv(draw.choice((1, 100, 4096)))
