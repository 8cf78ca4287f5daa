"""`tokenrelay demo`: its parts, and the whole demo with the bundled model."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.redis_servers import binaries
from tests.writers import Writer, serving
from tokenrelay.cli.demo.command import QUESTIONS
from tokenrelay.cli.demo.observers import redis_cli, redis_py, watch
from tokenrelay.producer import Producer
from tokenrelay.worker.training.corpus import FIXED_QUESTION, UNSEEN_QUESTION

if TYPE_CHECKING:
    from redis import Redis

    from tests.redis_servers import RedisServer

CLIENTS = [path for path in (str(Path(binary).with_name("redis-cli")) for binary in binaries()) if Path(path).exists()]
README = (Path(__file__).parents[2] / "README.md").read_text("utf-8")
TEXTS = ("It", ' "is"', "\n", "", "ü 日本", "\\n")


def test_the_questions_are_a_known_and_an_unseen_one() -> None:
    assert [question for question, _ in QUESTIONS] == [FIXED_QUESTION, UNSEEN_QUESTION]


@pytest.mark.parametrize("client", [*CLIENTS, "redis-py"])
def test_entries_are_read_while_the_stream_is_open(redis: Redis, redis_server: RedisServer, client: str) -> None:
    writer = Writer(redis)
    request_id = Producer(connection=redis).submit("Hello").request_id
    assert writer.take() == request_id
    command = [client, "-p", str(redis_server.port)]
    with redis_cli(command) if client != "redis-py" else nullcontext(redis_py(redis)) as run:
        seen = watch(run, request_id)
        assert (next(seen).fields["event"], writer.claim(request_id), next(seen).fields["event"]) == (
            "queued", 1, "started",
        )  # fmt: skip
        for index, text in enumerate(TEXTS, 1):
            writer.append(request_id, text)
            entry = next(seen)
            assert (entry.entry_id, entry.fields["text"], entry.state) == (f"{index}-0", text, "in_progress")
        writer.finish(request_id)
        (last,) = seen
        assert (last.entry_id, last.fields["event"], last.state) == ("6-1", "completed", "completed")


def cut_off() -> list[str]:
    """A command prefix that cuts off all networks but loopback; empty if the system doesn't allow it."""
    command = ["unshare", "--map-root-user", "--net", "sh", "-c", 'ip link set lo up 2>/dev/null; exec "$@"', "sh"]
    try:
        return command if subprocess.run([*command, "true"], capture_output=True, check=False).returncode == 0 else []
    except FileNotFoundError:
        return []


@pytest.mark.slow
def test_the_demo_answers_both_questions_with_the_network_cut() -> None:
    done = subprocess.run(
        [*cut_off(), sys.executable, "-m", "tokenrelay.cli", "demo"],
        # Not set to offline mode: it must not need any network.
        env={name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    known, unseen = re.split("^Will it rain", done.stdout, flags=re.MULTILINE)
    assert re.search(r"^  It is sunny and warm\.$", known, re.MULTILINE)
    for part in (known, unseen):
        # The number depends on the machine's load: a busy worker publishes several tokens at once.
        assert re.search(r"redis-cli read \d+ of them while the request was in progress", part)
    assert max(map(len, done.stdout.splitlines())) <= 100
    rows = [line.rpartition(" ")[0].rstrip() for line in known.splitlines() if re.search(r"  \d+-\d ", line)]
    assert rows == [row for row in rows if row in README], "README.md shows another output"


def test_the_python_of_the_readme(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TOKENRELAY_REDIS_URL", redis_server.url)
    (block,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    with serving(redis_server.url):
        exec(compile(block, "README.md", "exec"), {})
    assert capsys.readouterr().out == "It is sunny and warm."


@pytest.mark.slow
def test_the_commands_of_the_readme(redis_server: RedisServer) -> None:
    """The commands for one's own Redis, as written except for the address, and their output."""
    (block,) = re.findall(r"```console\n(\$ export TOKENRELAY_REDIS_URL=.*?)```", README, re.DOTALL)
    commands = [line.removeprefix("$ ") for line in block.splitlines() if line.startswith("$ ")]
    printed = [line for line in block.splitlines() if not line.startswith("$ ")]
    script = "\n".join(commands).replace("redis://127.0.0.1:6379/0", redis_server.url)
    script = script.replace(".venv/bin/", f"{Path(sys.executable).parent}/")
    done = subprocess.run(
        ["bash", "-c", f"trap 'kill $!; wait' EXIT\n{script}"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.stdout.splitlines() == printed, done.stderr[-2000:]
