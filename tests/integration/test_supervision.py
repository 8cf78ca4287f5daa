"""When the supervisor starts its children again, how soon, how it ends them, and how many it has."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import psutil
import pytest
from pydantic import SecretStr

from tests.integration.test_supervisor import ROOT, supervised
from tests.integration.test_worker import NOW, result, state, words
from tests.waiting import wait_until
from tests.workers import MODEL, submit
from tokenrelay.shared.errors import SettingsError
from tokenrelay.shared.settings import WorkerSettings
from tokenrelay.shared.wire import keys
from tokenrelay.worker.supervisor.child_process import KILL_AFTER_DRAIN_S, child_environment
from tokenrelay.worker.supervisor.device_supervisor import FINAL_CODES, FIRST_BACKOFF_S
from tokenrelay.worker.supervisor.devices import devices
from tokenrelay.worker.supervisor.supervisor import Supervisor

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from redis import Redis

    from tests.redis_servers import RedisServer
    from tokenrelay.shared.redis.batches import Pipeline

UNUSED_URL = SecretStr("redis://127.0.0.1:1/0")


@dataclass(frozen=True, slots=True)
class Start:
    """One start of a scripted child."""

    at_s: float
    pid: int
    worker: str
    device: str


class Scripted:
    """A supervisor process over scripted children, and what they have written."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path, errors: Path) -> None:
        self.process = process
        self._log = log
        self._errors = errors

    @property
    def starts(self) -> list[Start]:
        rows = [line.split() for line in self._log.read_text().splitlines()] if self._log.exists() else []
        return [Start(float(at), int(pid), worker, device) for at, pid, worker, device in rows]

    @property
    def pauses_s(self) -> list[float]:
        """What the supervisor's log says of each pause before the next start."""
        return [float(number) for number in re.findall(r"restarting it in ([\d.]+) s", self._errors.read_text())]


@contextmanager
def scripted(url: str, folder: Path, end: str, **settings: str) -> Iterator[Scripted]:
    log, errors = folder / "log", folder / "errors"
    chosen = {"REDIS_URL": url, "SERVED_MODEL": MODEL, "WORKER_NAME": "box", **settings}
    environment = {**os.environ, **{f"TOKENRELAY_{name}": value for name, value in chosen.items()}}
    environment |= {"SCRIPTED_END": end, "SCRIPTED_LOG": str(log)}
    command = [sys.executable, "-m", "tests.scripted_supervisor"]
    with (
        errors.open("wb") as stderr,
        subprocess.Popen(command, env=environment, cwd=ROOT, stderr=stderr) as process,
    ):
        made = Scripted(process, log, errors)
        try:
            yield made
        finally:
            process.kill()
            process.wait()
            for start in made.starts:
                if psutil.pid_exists(start.pid) and "scripted_child" in " ".join(psutil.Process(start.pid).cmdline()):
                    os.kill(start.pid, signal.SIGKILL)


def test_a_crash_loop_backs_off(redis_server: RedisServer, tmp_path: Path) -> None:
    with scripted(redis_server.url, tmp_path, "1") as supervisor:
        wait_until(lambda: len(supervisor.pauses_s) >= 5, 30)
        said_s = supervisor.pauses_s[:4]
        assert said_s == pytest.approx([FIRST_BACKOFF_S * 2**number for number in range(4)])
        between_s = [after.at_s - before.at_s for before, after in pairwise(supervisor.starts)]
        assert all(lasted >= said for lasted, said in zip(between_s, said_s, strict=False)), between_s
        supervisor.process.terminate()
        assert supervisor.process.wait(60) == 0, "told to stop while it waits to start a child"


@pytest.mark.parametrize("code", FINAL_CODES)
def test_a_child_that_says_it_is_final_is_not_started_again(
    redis_server: RedisServer, tmp_path: Path, code: int
) -> None:
    with scripted(redis_server.url, tmp_path, str(code)) as supervisor:
        assert supervisor.process.wait(60) == code
        assert len(supervisor.starts) == 1


def test_a_first_start_that_fails_is_the_last(redis_server: RedisServer, tmp_path: Path) -> None:
    """It says what to change; a child that never came up would say it again and again."""
    with scripted(redis_server.url, tmp_path, "unready 1") as supervisor:
        assert supervisor.process.wait(60) == 1
        assert len(supervisor.starts) == 1


@pytest.mark.slow
def test_a_child_that_hangs_in_its_drain_is_killed(redis_server: RedisServer, tmp_path: Path) -> None:
    with scripted(redis_server.url, tmp_path, "never", DRAIN_TIMEOUT_S="0.5") as supervisor:
        (start,) = wait_until(lambda: supervisor.starts, 30)
        child = psutil.Process(start.pid)
        supervisor.process.terminate()
        began = time.monotonic()
        assert supervisor.process.wait(KILL_AFTER_DRAIN_S + 15) == 0
        assert time.monotonic() - began >= KILL_AFTER_DRAIN_S, "it had its drain timeout, and time to say so"
        assert not child.is_running()
        assert len(supervisor.starts) == 1


def test_a_child_whose_reports_cant_be_read_is_killed(redis_server: RedisServer, tmp_path: Path) -> None:
    """Nobody would watch it any more; the process has ended once its supervisor has."""
    with scripted(redis_server.url, tmp_path, "odd") as supervisor:
        assert supervisor.process.wait(30) == signal.SIGKILL
        (start,) = supervisor.starts
        assert not psutil.pid_exists(start.pid)


def test_a_ready_file_that_cant_be_touched_stops_no_child(redis_server: RedisServer, tmp_path: Path) -> None:
    with scripted(redis_server.url, tmp_path, "0", READY_FILE=str(tmp_path / "nowhere" / "ready")) as supervisor:
        assert supervisor.process.wait(30) == 0
        assert len(supervisor.starts) == 1


def test_each_device_has_a_child_of_its_own(
    redis_server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    with scripted(redis_server.url, tmp_path, "0") as supervisor:
        assert supervisor.process.wait(60) == 0
        assert {(start.worker, start.device) for start in supervisor.starts} == {
            ("box.0", "cuda:0"),
            ("box.1", "cuda:1"),
        }


@pytest.mark.slow
def test_a_childs_requests_go_on_in_its_sibling(
    redis_server: RedisServer, redis: Redis, pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two devices under one supervisor: one child's death is the other's work, and disturbs nothing else of it."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")

    def pid_of(worker: str) -> int:
        return int(redis.hget(keys.rq_worker(worker), "pid") or 0)

    with supervised(redis_server.url, LEASE_MS="60000") as supervisor:
        wait_until(lambda: pid_of("box.0") and pid_of("box.1"), 30)
        first, second = pid_of("box.0"), pid_of("box.1")
        assert {child.pid for child in supervisor.children()} == {first, second}
        # More than one child has slots for: both are at work.
        ids = {seed: submit(pipeline, NOW, seed=seed, max_new_tokens=100) for seed in range(12)}
        wait_until(lambda: all(redis.xlen(keys.stream(request_id)) > 5 for request_id in ids.values()), 30)
        psutil.Process(first).kill()
        for seed, request_id in ids.items():
            wait_until(lambda request_id=request_id: state(redis, request_id) == "incomplete", 30)  # type: ignore[misc]
            assert result(redis, request_id).text == words(seed, 100)
        attempts = [result(redis, request_id).attempts for request_id in ids.values()]
        assert set(attempts) == {1, 2}, "the dead one's went on, the other one's weren't touched"
        wait_until(lambda: pid_of("box.0") not in (0, first), 30)
        assert pid_of("box.1") == second


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        ("0", ["cuda:0"]),
        ("2,3", ["cuda:0", "cuda:1"]),
        ("GPU-8a5b, GPU-9c1d", ["cuda:0", "cuda:1"]),
        ("", ["auto"]),
        ("-1", ["auto"]),
        ("0,-1,1", ["cuda:0"]),  # CUDA hides what comes behind an invalid one
    ],
)
def test_devices_are_the_visible_ones(visible: str, expected: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert devices(WorkerSettings(redis_url=UNUSED_URL)) == expected
    assert devices(WorkerSettings(redis_url=UNUSED_URL, device="cpu")) == ["cpu"], "a device that is named is the one"


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("echo 'GPU 0: NVIDIA H100 (UUID: GPU-1)'; echo 'GPU 1: NVIDIA H100 (UUID: GPU-2)'", ["cuda:0", "cuda:1"]),
        ("echo 'GPU 0: NVIDIA GeForce RTX 4090 Laptop GPU (UUID: GPU-1)'", ["cuda:0"]),
        ("echo 'GPU 0: half a line'; exit 9", ["auto"]),
        ("", ["auto"]),
    ],
)
def test_devices_are_those_that_nvidia_smi_lists(
    script: str, expected: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!{shutil.which('sh')}\n{script}\n")
    program.chmod(0o755)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert devices(WorkerSettings(redis_url=UNUSED_URL)) == expected


def test_a_driver_that_hangs_is_a_bad_setting_of_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!{shutil.which('sh')}\nexec {shutil.which('sleep')} 60\n")
    program.chmod(0o755)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SettingsError, match=r"nvidia-smi.*name the device"):
        devices(WorkerSettings(redis_url=UNUSED_URL), timeout_s=0.1)


def test_without_nvidia_smi_the_child_chooses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert devices(WorkerSettings(redis_url=UNUSED_URL)) == ["auto"]


def test_each_childs_metrics_are_on_a_port_of_their_own() -> None:
    settings = WorkerSettings(redis_url=UNUSED_URL, metrics_port=9464)
    told = [child_environment(settings, f"box.{index}", f"cuda:{index}", index) for index in range(2)]
    assert [environment["TOKENRELAY_METRICS_PORT"] for environment in told] == ["9464", "9465"]


def test_ports_that_dont_suffice_are_said_before_any_child_starts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    started = tmp_path / "started"
    supervisor = Supervisor(WorkerSettings(redis_url=UNUSED_URL, metrics_port=65_535), ("touch", str(started)))
    with pytest.raises(SettingsError, match="TOKENRELAY_METRICS_PORT: 2 engines take the ports 65535 to 65536"):
        supervisor.run()
    assert not started.exists()
