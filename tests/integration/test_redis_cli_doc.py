"""docs/redis-cli.md: its script assembles the exact text, and its commands run as written."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.redis_servers import binaries
from tests.writers import WEATHER, End, Writer
from tokenrelay.producer import Producer

if TYPE_CHECKING:
    from redis import Redis

    from tests.redis_servers import RedisServer

PAGE = (Path(__file__).parents[2] / "docs" / "redis-cli.md").read_text("utf-8")
COMMANDS = [line for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]
(SCRIPT,) = re.findall(r"```bash follow.sh\n(.*?)```", PAGE, re.DOTALL)
BASH = shutil.which("bash") or "bash"
CLIENTS = [path for path in (str(Path(binary).with_name("redis-cli")) for binary in binaries()) if Path(path).exists()]
HOSTILE = [
    "It is", " \"sunny\" and 'warm'", "\n\n", "", "\\n \\\" \\\\", "\\", '"', '\\"', "\t\r\a\b\x1b[31m\x00\x7f",
    "ü 日本 🌧️", "text", "event", "1) 1) \"7-0\"", "(nil)", "$(echo no) `no` %s %b \\c \\x41 \\101 & &", " ",
]  # fmt: skip


@pytest.fixture(params=CLIENTS)
def cli_folder(request: pytest.FixtureRequest, redis_server: RedisServer, tmp_path: Path) -> Path:
    """A folder whose redis-cli is a real one that talks to the test's server."""
    shim = tmp_path / "redis-cli"
    shim.write_text(f'#!/bin/sh\nexec {request.param} -p {redis_server.port} "$@"\n')
    shim.chmod(0o755)
    return tmp_path


@pytest.fixture
def writer(redis: Redis) -> Writer:
    return Writer(redis)


@pytest.fixture
def request_id(redis: Redis, writer: Writer) -> str:
    """A request that `writer` owns."""
    request_id = Producer(connection=redis).submit("What is the weather today?").request_id
    assert writer.take() == request_id
    writer.claim(request_id)
    return request_id


def follow(cli_folder: Path, request_id: str) -> subprocess.Popen[bytes]:
    (cli_folder / "follow.sh").write_text(SCRIPT)
    return subprocess.Popen(
        [BASH, "follow.sh", request_id],
        cwd=cli_folder,
        env={"PATH": f"{cli_folder}:/usr/bin:/bin"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


@pytest.mark.parametrize("last_text", ["", 'held back: \\" 日本\n\n'])
def test_the_script_assembles_the_exact_text(writer: Writer, request_id: str, cli_folder: Path, last_text: str) -> None:
    writer.append(request_id, *HOSTILE)
    writer.finish(request_id, End(text=last_text))
    with follow(cli_folder, request_id) as process:
        out, err = process.communicate(timeout=60)
    assert (out.decode(), err, process.returncode) == ("".join(HOSTILE) + last_text, b"", 0)


def test_the_script_prints_while_the_stream_is_open(writer: Writer, request_id: str, cli_folder: Path) -> None:
    with follow(cli_folder, request_id) as process:
        assert process.stdout
        for text in ("It ", "is\n", "ü"):
            writer.append(request_id, text)
            assert process.stdout.read(len(text.encode())).decode() == text
        writer.finish(request_id, End(state="failed", finish_reason="error"))
        assert process.stdout.read() == b""
        assert process.wait(60) == 1


@pytest.mark.slow
def test_the_script_says_when_there_is_no_stream(cli_folder: Path) -> None:
    with follow(cli_folder, "nosuchrequest0123456789") as process:
        _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert b"doesn't exist" in err


@pytest.mark.parametrize("command", COMMANDS)
def test_the_commands_run(writer: Writer, request_id: str, cli_folder: Path, command: str) -> None:
    writer.append(request_id, *WEATHER)
    done = subprocess.run(
        [BASH, "-euc", command],
        env={"PATH": f"{cli_folder}:/usr/bin:/bin", "ID": request_id},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert not done.stderr
    assert not re.search(r"^(\(error\)|ERR|WRONGTYPE|NOPERM)", done.stdout, re.MULTILINE)
    if "$ID" in command:
        assert done.stdout.strip(), "shows nothing"
