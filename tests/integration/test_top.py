"""`tokenrelay top`: its statistics against the streams, its frame at 80 columns, its keys on a real terminal."""

from __future__ import annotations

import fcntl
import io
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from typing import TYPE_CHECKING, Final

import pytest
from rich.console import Console
from typer.testing import CliRunner

from tests.writers import WEATHER, Writer
from tokenrelay.cli.commands import app
from tokenrelay.cli.ops.diagnosis import diagnose
from tokenrelay.cli.ops.frame import UNLIMITED, frame
from tokenrelay.cli.ops.snapshot import MAX_ENDED, MAX_REGISTRY_ENTRIES, Snapshot, as_json, read_snapshot
from tokenrelay.cli.ops.top import refresh
from tokenrelay.cli.terminal.tables import Percentiles
from tokenrelay.producer._core.drivers import Driver
from tokenrelay.shared.wire import keys

if TYPE_CHECKING:
    from collections.abc import Iterator

    from redis import Redis

    from tests.conftest import MakeRedisServer
    from tests.redis_servers import RedisServer
    from tokenrelay.producer import Generation, Producer

COMMAND: Final = (sys.executable, "-m", "tokenrelay.cli", "top")
QUEUE: Final = keys.queue("weather", "default")


def taken(redis: Redis) -> Snapshot:
    return Driver(redis).run(read_snapshot())


def printed(shot: Snapshot, *, width: int = 80, lines: int = UNLIMITED, trouble: str = "") -> list[str]:
    written = io.StringIO()
    console = Console(file=written, width=width, height=min(lines, 1000), color_system=None, highlight=False)
    console.print(frame(shot, diagnose(shot.system, shot.running), where="here", lines=lines, trouble=trouble))
    return written.getvalue().splitlines()


def answered(producer: Producer, writer: Writer, count: int = 1) -> list[Generation]:
    generations = producer.submit_many(["x"] * count)
    while request_id := writer.take():
        writer.answer(request_id)
    return generations


def test_the_figures_are_those_of_the_streams(
    redis: Redis, producer: Producer, writer: Writer, running: Generation
) -> None:
    done = answered(producer, writer, 3)
    waiting = producer.submit("x")
    shot = taken(redis)
    answers = [generation.result() for generation in done]
    tokens = [answer.tokens for answer in answers]
    tokens.append(tuple(token for _, token in zip(range(3), running.tokens(), strict=False)))
    gaps = [(b.at_us - a.at_us) / 1000 for one in tokens for a, b in zip(one, one[1:], strict=False)]
    assert shot.inter_token_ms == Percentiles.of(gaps)
    assert shot.inter_token_ms.count == 3 * 5 + 2
    started = next(event for event in running.events() if event.kind == "started")
    assert shot.ttft_ms.count == shot.queue_wait_ms.count == 4
    longest_ms = max(
        [1000 * (answer.timings.ttft_s or 0) for answer in answers]
        + [(tokens[-1][0].at_us - next(running.events()).at_us) / 1000]
    )
    assert shot.ttft_ms.max == pytest.approx(longest_ms)
    assert started.at_us == shot.slowest[0].started_us
    assert shot.tokens_per_s == pytest.approx((3 * len(WEATHER) + 3) / 5.0)
    assert (shot.waiting_in_all, shot.running_in_all, shot.is_sample) == (1, 1, False)
    assert [one.request_id for one in shot.slowest] == [running.request_id]
    assert shot.newest[0].request_id == waiting.request_id
    assert [one.tokens for one in shot.ended] == [6, 6, 6]


def test_a_migration_is_seen(redis: Redis, writer: Writer, running: Generation) -> None:
    writer.release(running.request_id)
    other = Writer(redis, "other")
    other.claim(running.request_id)
    other.append(running.request_id, " and")
    (migration,) = taken(redis).migrations
    assert (migration.worker, migration.attempt, migration.resumed_at) == ("other", 2, 4)
    shown = "\n".join(printed(taken(redis)))
    assert re.search(r"^migrated to .*\n^other +.* +4 +2 +" + running.request_id, shown, re.MULTILINE)


def test_a_sample_says_that_it_is_one(redis: Redis, producer: Producer, writer: Writer) -> None:
    answered(producer, writer, MAX_ENDED + 5)
    shot = taken(redis)
    assert (len(shot.ended), shot.is_sample) == (MAX_ENDED, True)
    assert f"a sample: 0 of 0 running, the last {MAX_ENDED} ended" in "\n".join(printed(shot))
    # The rate is of the time that the sample reaches back over, not of the whole window.
    span_s = (shot.system.now_us - min(one.ended_us or 0 for one in shot.ended)) / 1e6
    assert shot.tokens_per_s == pytest.approx(len(WEATHER) * MAX_ENDED / span_s, rel=0.1)


def test_a_sample_of_many_queues_says_that_it_is_one(redis: Redis, producer: Producer, writer: Writer) -> None:
    for number in range(20):  # so many places that less of each is looked at
        Writer(redis, f"worker-{number}", model=f"model-{number}").appear()
        producer.submit("x", model=f"model-{number}")
    answered(producer, writer)
    read_overview = MAX_REGISTRY_ENTRIES // (3 * len(taken(redis).system.queues))
    assert read_overview < MAX_ENDED / 2
    answered(producer, writer, read_overview - 2)
    assert not taken(redis).is_sample
    answered(producer, writer, 3)
    shot = taken(redis)
    assert (len(shot.ended), shot.is_sample) == (read_overview, True)


@pytest.mark.parametrize("lines", [16, 24, 40])
def test_a_frame_fits_its_terminal(
    redis: Redis, producer: Producer, writer: Writer, running: Generation, lines: int
) -> None:
    answered(producer, writer, 12)
    for number in range(30):
        Writer(redis, f"a-worker-with-a-rather-long-name-{number}").appear()
        producer.submit("x", model=f"owner/a-model-with-a-rather-long-name-{number}")
    shown = printed(taken(redis), lines=lines)
    assert len(shown) <= lines
    assert max(map(len, shown)) <= 80
    assert any(re.match(r"worker \(\d+ of 31\) ", line) for line in shown)
    assert any(line.startswith("newest") for line in shown) == (lines > 16)
    assert any(running.request_id in line for line in shown)


def test_an_empty_redis(redis: Redis) -> None:
    shown = printed(taken(redis))
    assert "0 waiting, 0 running, 0 workers" in shown[1]
    assert as_json(taken(redis))["newest"] == []


def test_a_redis_that_goes_away_is_said_over_the_last_figures(make_redis_server: MakeRedisServer) -> None:
    server = make_redis_server()
    with server.client() as client:
        shot = taken(client)
        server.kill()
        again, trouble = refresh(Driver(client), shot)
    assert again is shot
    shown = " ".join(" ".join(printed(shot, trouble=trouble)).split())
    assert "is it running there?" in shown
    assert "showing the last snapshot" in shown


def test_control_characters_in_names_stay_names(redis: Redis, producer: Producer) -> None:
    Writer(redis, "evil\x1b[2J[red]name").appear()
    producer.submit("x").cancel()
    assert "evil\\x1b[2J[red]name" in "\n".join(printed(taken(redis)))


def test_requests_that_cant_be_read_are_left_out(redis: Redis, producer: Producer) -> None:
    gone, broken, whole = producer.submit_many(["x"] * 3)
    redis.delete(keys.request(gone.request_id), keys.stream(gone.request_id))
    redis.hset(keys.request(broken.request_id), "next", "many")
    redis.rpush(keys.rq_queue(QUEUE), "not an ID", b"\xff")
    assert [one.request_id for one in taken(redis).queued] == [whole.request_id]


@pytest.fixture
def environment(redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENRELAY_REDIS_URL", redis_server.url)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.delenv("COLUMNS", raising=False)


class Terminal:
    """`top` on a pseudo-terminal of 80 × 24."""

    def __init__(self) -> None:
        self.ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        self.before = termios.tcgetattr(theirs)
        self.process = subprocess.Popen(
            [*COMMAND, "--interval", "0.2"],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            env=dict(os.environ),  # not what libreadline put beside it: a COLUMNS that stays when the window changes
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # Ctrl-C reaches a terminal's own session
        )
        self.theirs = theirs
        self.shown = b""

    def read_until(self, text: str, timeout_s: float = 20.0) -> None:
        end = time.monotonic() + timeout_s
        while text.encode() not in self.shown:
            ready, _, _ = select.select([self.ours], [], [], max(0.0, end - time.monotonic()))
            assert ready, self.shown.decode(errors="replace")
            self.shown += os.read(self.ours, 65_536)

    @property
    def width(self) -> int:
        """Of the last output."""
        last = self.shown.decode(errors="replace").rpartition("\x1b[H")[2]  # each frame begins there
        lines = re.sub(r"\x1b\[[0-9;?]*\w", "", last).splitlines()
        return max(map(len, lines), default=80)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.ours)
        os.close(self.theirs)


@pytest.fixture
def terminal(environment: None) -> Iterator[Terminal]:
    terminal = Terminal()
    yield terminal
    terminal.close()


def test_sigterm_leaves_the_terminal_as_it_was(terminal: Terminal) -> None:
    terminal.read_until("tokenrelay top")
    terminal.process.terminate()
    terminal.read_until("\x1b[?1049l")
    assert terminal.process.wait(60) == 143
    assert termios.tcgetattr(terminal.theirs) == terminal.before


@pytest.mark.parametrize(("key", "code"), [(b"q", 0), (b"\x03", 130)])
def test_a_key_leaves_the_terminal_as_it_was(
    terminal: Terminal, redis: Redis, producer: Producer, key: bytes, code: int
) -> None:
    terminal.read_until("tokenrelay top")
    generation = producer.submit("x")
    terminal.read_until(generation.request_id)  # a later frame
    fcntl.ioctl(terminal.theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 60, 0, 0))
    os.kill(terminal.process.pid, signal.SIGWINCH)
    while terminal.width > 60:
        terminal.shown = b""
        terminal.read_until("tokenrelay top")
    os.write(terminal.ours, key)
    terminal.read_until("\x1b[?1049l")
    assert terminal.process.wait(60) == code
    assert termios.tcgetattr(terminal.theirs) == terminal.before
    assert "Traceback" not in terminal.shown.decode()
    generation.cancel()


def test_a_pipe_gets_one_frame_or_one_object(environment: None, redis: Redis, writer: Writer) -> None:
    done = CliRunner().invoke(app, ["top"])
    assert (done.exit_code, done.stderr, "\x1b" in done.stdout) == (0, "", False)
    assert re.search(r"^scripted +idle ", done.stdout, re.MULTILINE)
    shown = json.loads(CliRunner().invoke(app, ["top", "--once", "--json"]).stdout)
    assert (shown["workers"][0]["name"], shown["findings"]) == ("scripted", [])


def test_no_redis_and_bad_options(environment: None, monkeypatch: pytest.MonkeyPatch) -> None:
    done = CliRunner().invoke(app, ["top", "--interval", "0"])
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
    assert "--interval" in done.stderr
    monkeypatch.setenv("TOKENRELAY_REDIS_URL", "redis://:secret@127.0.0.1:1/0")
    done = CliRunner().invoke(app, ["top"])
    assert (done.exit_code, done.stdout, done.stderr.count("\n")) == (3, "", 1)
    assert "secret" not in done.stderr
