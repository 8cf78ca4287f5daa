"""`tokenrelay trace` on a real Redis and a real worker: in a pipe, on a terminal, as JSON, and its exit codes."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from typing import TYPE_CHECKING, Final

import pytest

from tests.workers import MODEL, running_worker
from tokenrelay.producer import Producer

if TYPE_CHECKING:
    from redis import Redis

    from tests.redis_servers import RedisServer

COMMAND: Final = (sys.executable, "-m", "tokenrelay.cli", "trace")


@pytest.fixture(autouse=True)
def environment(redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENRELAY_REDIS_URL", redis_server.url)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("NO_COLOR", raising=False)


@pytest.fixture
def request_id(redis_server: RedisServer, redis: Redis) -> str:
    """Of a request that a worker has answered, over the counting engine."""
    with running_worker(redis_server.url):
        generation = Producer(connection=redis).submit("w1 w2 w3", model=MODEL, max_new_tokens=4, seed=7)
        generation.result(timeout_s=30)
    return generation.request_id


def trace(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments],
        capture_output=True,
        encoding="utf-8",
        timeout=100,
        check=False,
        stdin=subprocess.DEVNULL,
    )


def test_a_pipe_gets_plain_text(request_id: str) -> None:
    done = trace(request_id)
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout
    assert "3 tokens           w1 | w2 | w3\n" in done.stdout  # the worker stored them with its first claim
    assert "Prediction trace: 6 layers\n" in done.stdout
    assert "The reader saw the first word " in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_json_is_one_line(request_id: str) -> None:
    (line,) = trace(request_id, "--json").stdout.splitlines()
    shown = json.loads(line)
    assert (shown["request_id"], shown["state"], shown["finish_reason"]) == (request_id, "incomplete", "length")
    assert [stage["shape"] for stage in shown["stages"]] == ["1 prompt", "3 tokens", "4 tokens streamed", "1 text"]
    assert shown["latency"]["total_ms"] >= shown["latency"]["first_word_ms"] > 0


def test_a_terminal_gets_colour(request_id: str) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen([*COMMAND, request_id], stdout=theirs, stderr=theirs, stdin=theirs)
    os.close(theirs)
    shown = b""
    try:
        while piece := os.read(ours, 4096):
            shown += piece
    except OSError:  # Linux's way to say that the other end is closed
        pass
    os.close(ours)
    assert process.wait(60) == 0
    assert b"\x1b[" in shown
    assert "Prediction trace: 6 layers" in shown.decode()


def test_arrows_go_out_in_any_locale(request_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    assert "1 prompt → 3 tokens" in trace(request_id).stdout


def test_a_long_prompt_is_kept_as_token_ids_alone(redis_server: RedisServer, redis: Redis) -> None:
    with running_worker(redis_server.url):
        generation = Producer(connection=redis).submit("w1 " * 65, model=MODEL, max_new_tokens=1)
        generation.result(timeout_s=30)
    assert "65 token IDs" in trace(generation.request_id).stdout


@pytest.mark.parametrize(("request_id", "code"), [("nosuchrequest0123456789", 4), ("short", 2)])
def test_what_isnt_there(request_id: str, code: int) -> None:
    done = trace(request_id)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (code, "", 1)
