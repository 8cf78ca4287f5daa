"""`tokenrelay load` on a scripted worker: counts, stopping, and invalid options."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any, Final

import pytest
from typer.testing import CliRunner

from tests.waiting import wait_until
from tests.writers import WEATHER, End, Writer, serving
from tokenrelay.cli.commands import app
from tokenrelay.cli.load.report import report
from tokenrelay.cli.load.run import LoadRun
from tokenrelay.cli.load.workload import Arrival
from tokenrelay.producer import AsyncProducer
from tokenrelay.shared.wire import keys

if TYPE_CHECKING:
    from pathlib import Path

    from redis import Redis

    from tests.redis_servers import RedisServer

COMMAND: Final = (sys.executable, "-m", "tokenrelay.cli", "load")
QUEUE: Final = keys.queue("weather", "default")


@pytest.fixture(autouse=True)
def environment(redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENRELAY_REDIS_URL", redis_server.url)
    monkeypatch.setenv("COLUMNS", "80")


def driven(url: str, arrivals: list[Arrival], **options: Any) -> LoadRun:
    async def drive() -> LoadRun:
        async with AsyncProducer(url) as producer:
            run = LoadRun(producer, arrivals, options)
            await run.run()
            return run

    return asyncio.run(drive())


def test_a_run_counts_what_its_requests_went_through(redis_server: RedisServer) -> None:
    failure = End("failed", "error", code="internal_error", message="no")

    def respond(writer: Writer, request_id: str) -> None:
        writer.answer(request_id, end=failure if writer.request(request_id)["prompt"] == "fail" else None)

    arrivals = [Arrival(0.02 * number, "fail" if number == 3 else "x", 8, number) for number in range(10)]
    with serving(redis_server.url, respond):
        run = driven(redis_server.url, arrivals)
    found = report(run.outcomes, run.errors, seed=1, rate=50, window_s=0.2, stopped=False)
    assert (found.requests, dict(found.states)) == (10, {"completed": 9, "failed": 1})
    assert dict(found.errors) == {"internal_error: no": 1}
    assert (found.tokens, run.tokens, found.prompt_tokens) == (10 * len(WEATHER), 10 * len(WEATHER), 30)
    assert (found.inter_token_ms.count, found.ttft_ms.count, found.total_ms.count) == (50, 10, 9)
    assert 0 < (found.queue_wait_ms.p50 or 0) <= (found.ttft_ms.max or 0)
    # The longest wait for a first token may be that of the request that failed, which has no total.
    assert (found.ttft_ms.p50 or 0) <= (found.total_ms.max or 0)


def test_arrivals_dont_wait_for_answers(redis_server: RedisServer, redis: Redis) -> None:
    """An open loop: while the worker holds the first request, the others are submitted on schedule."""
    all_are_there = threading.Event()

    def respond(writer: Writer, request_id: str) -> None:
        assert all_are_there.wait(60)
        writer.answer(request_id)

    def look() -> None:
        wait_until(lambda: redis.llen(keys.rq_queue(QUEUE)) == 9)
        all_are_there.set()

    looking = threading.Thread(target=look)
    looking.start()
    with serving(redis_server.url, respond):
        run = driven(redis_server.url, [Arrival(0.03 * number, "x", 8, number) for number in range(10)])
    looking.join()
    assert [outcome.state for outcome in run.outcomes] == ["completed"] * 10


def test_a_full_queue_is_counted_as_refused(redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENRELAY_MAX_QUEUE_DEPTH", "2")
    arrivals = [Arrival(0.0, "x", 8, number) for number in range(4)]
    run = driven(redis_server.url, arrivals, deadline_s=0.4)
    assert sorted(outcome.state for outcome in run.outcomes) == ["expired", "expired", "refused", "refused"]
    assert all("at most 2 may" in message for message in run.errors)


def test_the_command_prints_its_table_and_its_curves(redis_server: RedisServer) -> None:
    with serving(redis_server.url):
        done = CliRunner().invoke(app, ["load", "--rate", "30", "--duration", "0.7", "--seed", "5"])
    assert (done.exit_code, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0].endswith(" completed")
    assert "30/s asked for, seed 5" in lines[1]
    assert "first token, median by arrival" in lines
    assert any("█" in line for line in lines)
    assert max(map(len, lines)) <= 80


@pytest.mark.slow
def test_the_curves_as_a_picture(redis_server: RedisServer, tmp_path: Path) -> None:
    picture = tmp_path / "load.png"
    with serving(redis_server.url):
        done = CliRunner().invoke(app, ["load", "--rate", "30", "--duration", "1", "--plot", str(picture)])
    assert (done.exit_code, done.stderr) == (0, "")
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_ctrl_c_cancels_what_is_open_and_prints(redis_server: RedisServer, redis: Redis) -> None:
    def begin(writer: Writer, request_id: str) -> None:
        if writer.claim(request_id):  # not one that Ctrl-C cancelled before
            writer.append(request_id, "It")

    with serving(redis_server.url, begin):
        process = subprocess.Popen([*COMMAND, "--rate", "20", "--duration", "60", "--json"], stdout=subprocess.PIPE)
        wait_until(lambda: redis.zcard(keys.claimed(QUEUE)) >= 5, 20)
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=60)
    found = json.loads(out)
    assert (process.returncode, found["stopped"]) == (130, True)
    assert found["states"] == {"cancelled": found["requests"]}
    assert found["tokens"] >= 5
    assert 0 < found["duration_s"] < 60


@pytest.mark.slow
def test_nobody_to_answer_is_said_once(redis: Redis) -> None:
    done = CliRunner().invoke(app, ["load", "--rate", "20", "--duration", "0.5", "--deadline-s", "1.5", "--json"])
    assert done.exit_code == 0
    assert done.stderr.count("no live worker serves it") == 1
    assert set(json.loads(done.stdout)["states"]) == {"expired"}


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--rate", "0", "--duration", "1"), "--rate: 0 is out of bounds"),
        (("--rate", "nan", "--duration", "1"), "--rate: nan is out of bounds"),
        (("--rate", "1", "--duration", "-1"), "--duration: -1 is out of bounds"),
        (("--rate", "1", "--duration", "1", "--max-new-tokens", "9:3"), "--max-new-tokens: 9:3 is empty"),
        (("--rate", "1", "--duration", "1", "--prompts", "/nowhere"), "--prompts: "),
        (("--rate", "1", "--duration", "1", "--model", "no/such/name"), "model: "),
        (("--rate", "1", "--duration", "1", "--plot", "x.txt"), "--plot: 'x.txt': unsupported format"),
    ],
)
def test_bad_options(arguments: tuple[str, ...], told: str, redis: Redis) -> None:
    done = CliRunner().invoke(app, ["load", *arguments])
    assert (done.exit_code, done.stdout) == (2, "")
    assert told in done.stderr
    assert not redis.keys()
