"""A whole system as processes: a supervisor with its engine, a gateway, and Prometheus where the machine has it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import urllib.parse
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import httpx
import psutil

from tests.redis_servers import free_port
from tests.scrapes import Scrape
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT: Final = Path(__file__).parents[2]
_SERVE: Final = (sys.executable, "-m", "tokenrelay.cli", "serve", "--port", "0")
_RUN: Final = (sys.executable, "-m", "tokenrelay.worker", "run")
_PROMETHEUS: Final = ("--storage.tsdb.retention.time=1h", "--log.level=warn")


def environment(redis_url: str, **settings: object) -> dict[str, str]:
    chosen = {"REDIS_URL": redis_url, **settings}
    return {**os.environ, **{f"TOKENRELAY_{name}": str(value) for name, value in chosen.items()}}


@dataclass(frozen=True, slots=True)
class Worker:
    """A supervisor with one engine."""

    process: psutil.Process
    port: int

    @property
    def engine(self) -> psutil.Process:
        """The child: its only one."""
        return wait_until(self.process.children)[0]

    def scrape(self) -> Scrape:
        return Scrape(self.port)


@contextmanager
def running_worker(redis_url: str, **settings: object) -> Iterator[Worker]:
    """The bundled model's; returns at once, before it serves."""
    port = free_port()
    chosen = environment(redis_url, METRICS_PORT=port, HEARTBEAT_MS=50, **settings)
    with subprocess.Popen(_RUN, env=chosen) as process:
        worker = Worker(psutil.Process(process.pid), port)
        try:
            yield worker
        finally:
            left = worker.process.children(recursive=True) if worker.process.is_running() else []
            process.terminate()
            try:
                process.wait(60)
            finally:
                for orphan in left:
                    if orphan.is_running():
                        orphan.kill()


@dataclass(frozen=True, slots=True)
class Gateway:
    """A `tokenrelay serve`."""

    url: str
    port: int

    def scrape(self) -> Scrape:
        return Scrape(self.port)


@contextmanager
def running_gateway(redis_url: str, **settings: object) -> Iterator[Gateway]:
    port = free_port()
    chosen = environment(redis_url, METRICS_PORT=port, **settings)
    with subprocess.Popen(_SERVE, env=chosen, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr
            url = process.stderr.readline().strip()
            assert url.startswith("http://127.0.0.1:"), url
            wait_until(lambda: httpx.get(f"{url}/health").status_code == 200)
            yield Gateway(url, port)
        finally:
            process.kill()
            process.communicate()


class Prometheus:
    """A real one on the deployed configuration, but for where its targets are and how often it asks them."""

    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}/api/v1"

    def query(self, expression: str) -> list[float]:
        """The values that the expression has now, one a series."""
        answer = self._get("query?" + urllib.parse.urlencode({"query": expression}))
        return [float(series["value"][1]) for series in answer["result"]]

    def rules(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self._get("rules")["groups"][0]["rules"]
        return found

    def _get(self, path: str) -> dict[str, Any]:
        with urllib.request.urlopen(f"{self._url}/{path}", timeout=60) as response:
            data: dict[str, Any] = json.load(response)["data"]
        return data


@contextmanager
def running_prometheus(folder: Path, ports: dict[str, int]) -> Iterator[Prometheus]:
    """`ports`: of each service that deploy/prometheus.yml names."""
    binary = shutil.which("prometheus")
    assert binary is not None
    text = (ROOT / "deploy" / "prometheus.yml").read_text("utf-8").replace("dns_sd_configs", "static_configs")
    for service, port in ports.items():
        text, count = re.subn(rf"\{{names: \[{service}\].*\}}", f'{{targets: ["127.0.0.1:{port}"]}}', text)
        assert count == 1
    (folder / "prometheus.yml").write_text(re.sub(r"_interval: 15s", "_interval: 1s", text))
    shutil.copy(ROOT / "deploy" / "alerts.yml", folder)
    own = free_port()
    command = [binary, f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
    command += [f"--web.listen-address=127.0.0.1:{own}", *_PROMETHEUS]
    with (folder / "log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        prometheus = Prometheus(own)
        try:
            wait_until(lambda: _answers(prometheus), 30)
            yield prometheus
        finally:
            process.terminate()
            process.wait(60)


def _answers(prometheus: Prometheus) -> bool:
    try:
        return bool(prometheus.query("vector(1)"))
    except OSError:
        return False


def promtool_complaints(exposition: str) -> str:
    """What `promtool check metrics` says of an exposition."""
    checked = subprocess.run(
        ["promtool", "check", "metrics"], input=exposition, capture_output=True, text=True, check=False
    )
    return checked.stdout + checked.stderr
