"""Engine processes whose supervisor is gone: they hand back what they hold, and end, whatever they are doing."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import psutil
import pytest

from tests.integration.test_supervisor import ROOT
from tests.waiting import wait_until
from tokenrelay.worker.supervisor.pipes import Tether

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.redis_servers import RedisServer

LONG_S = 300


def hold_the_interpreter() -> None:
    """As loading a large library may: no other thread of Python's runs meanwhile."""
    ctypes.PyDLL(None).sleep(LONG_S)


def fail() -> None:
    raise RuntimeError("a hand-back that fails")


@pytest.mark.parametrize(
    ("handed_over", "busy_with"),
    [
        (None, time.sleep),
        (None, lambda _: hold_the_interpreter()),
        (lambda: None, time.sleep),
        (fail, time.sleep),
    ],
    ids=["loading", "holding the interpreter", "hanging", "failing to hand back"],
)
def test_a_process_ends_with_its_supervisor(
    handed_over: Callable[[], None] | None, busy_with: Callable[[float], object]
) -> None:
    if sys.platform != "linux" and handed_over is None and busy_with is not time.sleep:
        pytest.skip("macOS ignores SIGIO")
    read, write = os.pipe()
    ready, told = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(write)
        tether = Tether(read, grace_s=0.2)
        if handed_over is not None:
            tether.hand_over(handed_over)
        os.write(told, b"x")
        busy_with(LONG_S)
        os._exit(0)
    os.close(read)
    assert os.read(ready, 1) == b"x"
    os.close(write)
    ended = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert ended in ((1, -signal.SIGIO) if handed_over is None else (1,))
    for descriptor in (ready, told):
        os.close(descriptor)


def test_a_process_whose_supervisor_died_before_it_began_ends() -> None:
    read, write = os.pipe()
    os.close(write)
    command = [sys.executable, "-m", "tokenrelay.worker.supervisor.child", "--report-fd", "1", "--tether-fd", str(read)]
    done = subprocess.run(command, pass_fds=[read], capture_output=True, cwd=ROOT, timeout=50, check=False)
    os.close(read)
    assert (done.returncode, done.stderr) == (1, b"")


SLOW_TORCH = """
import os, pathlib, time

pathlib.Path(os.environ["LOADING"]).touch()
time.sleep(300)
"""


def test_a_child_that_still_loads_ends_with_its_supervisor(redis_server: RedisServer, tmp_path: Path) -> None:
    """Its torch takes minutes to import; a child that loads on would hold its GPU against the next supervisor's."""
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text(SLOW_TORCH)
    loading = tmp_path / "loading"
    environment = {**os.environ, "TOKENRELAY_REDIS_URL": redis_server.url, "LOADING": str(loading)}
    environment["PYTHONPATH"] = os.pathsep.join([str(tmp_path), environment.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "tokenrelay.worker", "run", "--device", "cpu"]
    with subprocess.Popen(command, env=environment, cwd=ROOT) as process:
        wait_until(loading.exists, 60)
        (child,) = psutil.Process(process.pid).children()
        process.kill()
        psutil.wait_procs([child], timeout=10)
        try:
            assert not child.is_running()
        finally:
            if child.is_running():
                child.kill()
