"""Redis passwords appear in no command line, log or error, whatever happens to the connection."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import psutil
import pytest

from tests.waiting import wait_until
from tokenrelay.shared.redis.connections import connect
from tokenrelay.shared.wire import keys

if TYPE_CHECKING:
    from tests.conftest import MakeRedisServer

ROOT: Final = Path(__file__).parents[2]
SECRET: Final = "s3cret-of-a-test"


def command_lines() -> list[str]:
    """The command lines of all visible processes."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline") if Path("/proc").is_dir() else ():
        try:
            found.append(file.read_bytes().decode(errors="replace"))
        except OSError:  # ended meanwhile
            continue
    return found or [" ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"])]


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_password_is_on_no_command_line_and_in_no_log(make_redis_server: MakeRedisServer, tmp_path: Path) -> None:
    server = make_redis_server()
    with server.client() as client:
        # Not by --requirepass, which would put it on the server's own command line.
        client.config_set("requirepass", SECRET)
    file = tmp_path / "redis_url"
    url = f"redis://:{SECRET}@127.0.0.1:{server.port}/0"
    file.write_text(f"{url}\n", "utf-8")
    environment = {name: value for name, value in os.environ.items() if name != "TOKENRELAY_REDIS_URL"}
    environment |= {"TOKENRELAY_REDIS_URL_FILE": str(file), "TOKENRELAY_WORKER_NAME": "box"}
    log = tmp_path / "worker.log"
    with log.open("wb") as output:
        worker = subprocess.Popen(
            [sys.executable, "-m", "tokenrelay.worker", "run"], cwd=ROOT, env=environment, stdout=output, stderr=output
        )
    try:
        ask = [
            sys.executable,
            "-m",
            "tokenrelay.cli",
            "ask",
            "What is the weather today?",
            "--temperature",
            "0",
        ]
        asked = subprocess.Popen(ask, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        with connect(url) as client:
            wait_until(lambda: client.exists(keys.rq_worker("box.0")), 90)
        seen = command_lines()
        stdout, stderr = asked.communicate(timeout=60)
        assert stdout == b"It is sunny and warm.\n"
        # What goes wrong is logged with where, and that must not be the URL.
        server.kill()
        wait_until(lambda: b"Error" in log.read_bytes() or b"Redis" in log.read_bytes(), 20)
        refused = subprocess.run(ask, cwd=ROOT, env=environment, capture_output=True, timeout=100, check=False)
        assert refused.returncode
    finally:
        worker.send_signal(signal.SIGTERM)
        worker.wait(60)
    assert any("tokenrelay.worker" in line for line in seen)
    assert not [line for line in seen if SECRET in line]
    for told in (log.read_bytes(), stdout, stderr, refused.stdout, refused.stderr):
        assert SECRET.encode() not in told
    assert log.read_bytes()


def test_no_command_takes_a_redis_url() -> None:
    """No command suggests passing a password where other users can read it."""
    for module in ("tokenrelay.worker", "tokenrelay.cli"):
        commands = ("run",) if module.endswith("worker") else ("ask", "submit", "follow")
        for command in commands:
            done = subprocess.run(
                [sys.executable, "-m", module, command, "--help"], cwd=ROOT, capture_output=True, text=True, check=True
            )
            options = re.findall(r"--[a-z-]+", done.stdout)
            assert "--help" in options
            assert not [option for option in options if re.search("redis|url|password", option)]
