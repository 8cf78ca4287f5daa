"""The command `tokenrelay`: output, exit codes, Ctrl-C, pipes."""

from __future__ import annotations

import json
import math
import os
import pty
import signal
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any, Final, get_type_hints

import pytest
from typer.testing import CliRunner

from tests.writers import WEATHER, End, Scored, Writer, serving
from tokenrelay.cli.commands import app
from tokenrelay.producer import Consumer, Producer
from tokenrelay.shared.options import DEFAULTS, VERSION_2, Options
from tokenrelay.shared.wire.entries import State

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from redis import Redis

    from tests.redis_servers import RedisServer

COMMAND: Final = (sys.executable, "-m", "tokenrelay.cli")
QUESTION: Final = "What is the weather today?"


@pytest.fixture(autouse=True)
def environment(redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENRELAY_REDIS_URL", redis_server.url)
    monkeypatch.setenv("TERM", "dumb")


@pytest.fixture
def running() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Processes started by the test; remaining ones are terminated."""
    processes: list[subprocess.Popen[bytes]] = []
    yield processes
    for process in processes:
        process.kill()
        process.communicate()


def tokenrelay(*arguments: str, given: str | bytes = b"") -> subprocess.CompletedProcess[str]:
    raw = given.encode() if isinstance(given, str) else given
    done = subprocess.run([*COMMAND, *arguments], input=raw, capture_output=True, timeout=100, check=False)
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


def lines(output: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.splitlines()]


def test_ask_prints_the_answer(redis_server: RedisServer) -> None:
    with serving(redis_server.url):
        done = tokenrelay("ask", QUESTION)
    assert (done.stdout, done.stderr, done.returncode) == ("It is sunny and warm.\n", "", 0)


def test_ask_prints_model_text_as_it_is(redis_server: RedisServer) -> None:
    texts = ("[bold]", "\x1b[31m", "", " 日本\n", "[/nope] :smile:")
    with serving(redis_server.url, lambda writer, request_id: writer.answer(request_id, texts, End(text=" held"))):
        done = tokenrelay("ask", QUESTION)
    assert done.stdout == "".join(texts) + " held\n"


def test_ask_reads_standard_input_and_all_options(redis_server: RedisServer) -> None:
    asked: list[Any] = []

    def respond(writer: Writer, request_id: str) -> None:
        asked.append(writer.request(request_id))
        writer.answer(request_id)

    given = {
        "max_new_tokens": 5, "temperature": 0.0, "top_k": 3, "top_p": 0.5, "seed": 0, "priority": "high",
        "stop": ["a", "b"], "ignore_eos": True, "deadline_s": 60.0, "metadata": {"user": [1, "ü"]},
        "logit_bias": {"5": 1.5}, "repetition_penalty": 1.1, "frequency_penalty": 0.5, "presence_penalty": -0.5,
        "bad_words": ["rain", "a b"], "min_tokens": 2, "min_p": 0.25, "stop_token_ids": [5, 7],
        "include_stop_str_in_output": True, "logprobs": True, "top_logprobs": 3, "prompt_logprobs": 2, "echo": True,
    }  # fmt: skip
    arguments = ["--idempotency-key", "k1", "--model", "weather"]
    for name, value in given.items():
        flag = f"--{name.replace('_', '-')}"
        for item in value if isinstance(value, list) else [value]:
            shown = json.dumps(item) if isinstance(item, dict) else str(item)
            arguments += [flag] if item is True else [flag, shown]
    with serving(redis_server.url, respond):
        done = tokenrelay("ask", "-", *arguments, given="Wie wird's?\n日本 ")
    assert done.returncode == 0, done.stderr
    expected = {**DEFAULTS, **given, "prompt": "Wie wird's?\n日本 "}
    others = {"response_format", "prompt_token_ids", "continue_final_message", "chat_template_kwargs"}
    others |= {"tools", "tool_choice", "parallel_tool_calls"}
    assert VERSION_2.keys() - given.keys() == others, "which don't go with ignore_eos, or with a prompt of text"
    for name in ("idempotency_key", *others):  # isn't part of the stored body, weren't given
        del expected[name]
    assert asked == [expected]


def test_ask_takes_what_the_answer_must_match_as_json(redis_server: RedisServer) -> None:
    asked: list[Any] = []

    def respond(writer: Writer, request_id: str) -> None:
        asked.append(writer.request(request_id))
        writer.answer(request_id)

    form = {"type": "regex", "value": "a+", "strict": True}
    with serving(redis_server.url, respond):
        done = tokenrelay("ask", QUESTION, "--response-format", json.dumps(form))
        schema = '\ufeff{"type": "object"}'
        piped = tokenrelay("ask", QUESTION, "--schema", "-", given=schema)
    assert done.returncode == 0, done.stderr
    assert piped.returncode == 0, piped.stderr
    wanted = {"type": "json_schema", "value": schema[1:], "strict": True}
    assert [request["response_format"] for request in asked] == [form, wanted]


def test_every_generation_option_is_offered() -> None:
    done = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["ask", "--help"])
    for name in get_type_hints(Options):
        assert f"--{name.replace('_', '-')} " in done.output
    assert "The answer ends before the first of these strings." in done.output
    assert "default: 600.0" in done.output


def test_ask_takes_a_chat(redis_server: RedisServer) -> None:
    with serving(redis_server.url):
        done = tokenrelay("ask", "--messages", json.dumps([{"role": "user", "content": QUESTION}]))
    assert (done.stdout, done.returncode) == ("It is sunny and warm.\n", 0)


def test_ask_json_gives_an_entry_per_line(redis_server: RedisServer) -> None:
    with serving(redis_server.url):
        done = tokenrelay("ask", QUESTION, "--json", "--metadata", '{"user": 7}')
    entries = lines(done.stdout)
    assert [entry["kind"] for entry in entries] == ["queued", "started", *["token"] * 6, "completed"]
    assert [entry["entry_id"] for entry in entries] == ["0-1", "0-2", *(f"{n}-0" for n in range(1, 7)), "6-1"]
    assert "".join(entry.get("text", "") for entry in entries) == "It is sunny and warm."
    assert entries[0]["metadata"] == {"user": 7}
    assert entries[-1]["usage"] == {"prompt_tokens": 3, "completion_tokens": 6, "recomputed_tokens": 0}
    assert len({entry["request_id"] for entry in entries}) == 1


def test_tokens_come_out_while_the_answer_is_written(
    redis_server: RedisServer, running: list[subprocess.Popen[bytes]]
) -> None:
    go_on = threading.Event()

    def respond(writer: Writer, request_id: str) -> None:
        writer.claim(request_id)
        writer.append(request_id, "It")
        assert go_on.wait(60)
        writer.append(request_id, " is")
        writer.finish(request_id)

    with serving(redis_server.url, respond):
        process = subprocess.Popen([*COMMAND, "ask", QUESTION], stdout=subprocess.PIPE)
        running.append(process)
        assert process.stdout
        assert process.stdout.read(2) == b"It"
        go_on.set()
        assert process.stdout.read() == b" is\n"
        assert process.wait(60) == 0


def first_token_only(writer: Writer, request_id: str) -> None:
    writer.claim(request_id)
    writer.append(request_id, "It")


def test_ctrl_c_on_ask_cancels(redis_server: RedisServer, redis: Redis, running: list[subprocess.Popen[bytes]]) -> None:
    with serving(redis_server.url, first_token_only):
        process = subprocess.Popen(
            [*COMMAND, "ask", QUESTION, "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        running.append(process)
        assert process.stdout
        queued = json.loads(process.stdout.readline())
        while json.loads(process.stdout.readline())["kind"] != "token":
            pass
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, b"")
    assert Consumer(connection=redis).get(queued["request_id"]).status().state == State.CANCELLED


def test_ask_cancels_when_its_reader_leaves(
    redis_server: RedisServer, redis: Redis, running: list[subprocess.Popen[bytes]]
) -> None:
    go_on = threading.Event()

    def respond(writer: Writer, request_id: str) -> None:
        first_token_only(writer, request_id)
        assert go_on.wait(60)
        writer.append(request_id, " is")

    with serving(redis_server.url, respond):
        process = subprocess.Popen(
            [*COMMAND, "ask", QUESTION, "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        running.append(process)
        assert process.stdout
        assert process.stderr
        queued = json.loads(process.stdout.readline())
        process.stdout.close()
        go_on.set()
        assert (process.wait(60), process.stderr.read()) == (141, b"")
    assert Consumer(connection=redis).get(queued["request_id"]).status().state == State.CANCELLED


def test_ctrl_c_on_follow_leaves_the_request_running(
    redis_server: RedisServer, redis: Redis, running: list[subprocess.Popen[bytes]]
) -> None:
    with serving(redis_server.url, first_token_only):
        generation = Producer(connection=redis).submit(QUESTION)
        process = subprocess.Popen([*COMMAND, "follow", generation.request_id], stdout=subprocess.PIPE)
        running.append(process)
        assert process.stdout
        assert process.stdout.read(2) == b"It"
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    assert generation.status().state == State.IN_PROGRESS
    generation.cancel()


def test_submit_then_follow_from_a_token(redis_server: RedisServer) -> None:
    request_id = tokenrelay("submit", QUESTION).stdout.strip()
    with serving(redis_server.url):
        assert tokenrelay("follow", request_id).stdout == "It is sunny and warm.\n"
    assert tokenrelay("follow", request_id, "--after", "3").stdout == " and warm.\n"
    tail = lines(tokenrelay("follow", request_id, "--after", "5", "--json").stdout)
    assert [entry["entry_id"] for entry in tail] == ["6-0", "6-1"]


def test_submit_json(redis: Redis) -> None:
    (line,) = lines(tokenrelay("submit", QUESTION, "--json", "--priority", "low").stdout)
    assert line["queue"] == "tokenrelay.weather.low"
    assert Consumer(connection=redis).get(line["request_id"]).status().state == State.QUEUED


def test_cancel_and_status() -> None:
    request_id = tokenrelay("submit", QUESTION).stdout.strip()
    assert "state         queued" in tokenrelay("status", request_id).stdout
    assert "tokenrelay.weather.default        1        0        0" in tokenrelay("status").stdout
    assert tokenrelay("cancel", request_id).stdout == "cancelled\n"
    again = tokenrelay("cancel", request_id, "--json")
    assert lines(again.stdout) == [{"request_id": request_id, "cancelled": False, "state": "cancelled"}]
    assert lines(tokenrelay("status", request_id, "--json").stdout)[0]["state"] == "cancelled"
    (overview,) = lines(tokenrelay("status", "--json").stdout)
    assert (overview["queues"][0]["waiting"], overview["findings"]) == (0, [])
    followed = tokenrelay("follow", request_id)
    assert (followed.returncode, followed.stderr.count("\n")) == (1, 1)


def test_a_failed_generation_is_one_line_and_exit_1(redis_server: RedisServer) -> None:
    end = End("failed", "error", code="prompt_too_long", message="600 tokens, at most 512")
    with serving(redis_server.url, lambda writer, request_id: writer.answer(request_id, ("It",), end)):
        done = tokenrelay("ask", QUESTION)
    assert (done.returncode, done.stdout) == (1, "It\n")
    assert "prompt_too_long" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_no_worker_is_warned_of_in_one_line() -> None:
    done = tokenrelay("ask", QUESTION, "--deadline-s", "2.5")
    assert done.returncode == 1
    warned, expired = done.stderr.splitlines()
    assert "no live worker serves it" in warned
    assert "expired" in expired


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["ask", ""], 2, "prompt: is empty or blank"),
        (["ask"], 2, "prompt, messages: neither given"),
        (["ask", "x", "--max-new-tokens", "0"], 2, "max_new_tokens: "),
        (["ask", "x", "--temperature", "nan"], 2, "temperature: "),
        (["ask", "x", "--metadata", "{"], 2, "metadata: isn't JSON"),
        (["ask", "x", "--seed", "-1"], 2, "seed: "),
        (["submit", "x", "--seed", "many"], 2, "--seed"),
        (["ask", "x", "--priority", "urgent"], 2, "--priority"),
        (["ask", "x", "--nonsense"], 2, "--nonsense"),
        (["ask", "-", "--schema", "-"], 2, "schema: the prompt is read from standard input; give a file"),
        (["ask", "x", "--schema", "{}"], 2, "give a file, or - for standard input"),
        (["follow", "short"], 2, "request_id: "),
        (["follow", "nosuchrequest0123456789"], 4, "no request nosuchrequest0123456789"),
        (["cancel", "nosuchrequest0123456789"], 4, "no request"),
        (["status", "nosuchrequest0123456789"], 4, "no request"),
        (["follow", "nosuchrequest0123456789", "--after", "-1"], 4, "no request"),
    ],
)
def test_bad_input(arguments: list[str], code: int, told: str, redis: Redis) -> None:
    done = CliRunner().invoke(app, arguments)
    assert (done.exit_code, done.stdout) == (code, "")
    assert told in done.stderr
    assert isinstance(done.exception, SystemExit)
    assert not redis.keys()


def test_standard_input_that_is_no_text() -> None:
    done = tokenrelay("ask", "-", given=b"\xff\xfe")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "UTF-8" in done.stderr


def test_redis_that_cannot_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENRELAY_REDIS_URL", "redis://:secret@127.0.0.1:1/0")
    for arguments in (["ask", "x"], ["status"], ["follow", "nosuchrequest0123456789"]):
        done = tokenrelay(*arguments)
        assert (done.returncode, done.stderr.count("\n")) == (3, 1), done.stderr
        assert "secret" not in done.stderr


def test_kubernetes_service_links_keep_nobody_from_starting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENRELAY_GATEWAY_PORT", "tcp://10.0.0.7:8000")
    monkeypatch.setenv("TOKENRELAY_GATEWAY_SERVICE_HOST", "10.0.0.7")
    monkeypatch.setenv("TOKENRELAY_METRICS_PORT", "tcp://10.0.0.7:9464")
    assert tokenrelay("submit", QUESTION).returncode == 0


def test_an_unknown_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENRELAY_REDIS_ULR", "redis://127.0.0.1:1/0")
    done = tokenrelay("status")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "TOKENRELAY_REDIS_ULR" in done.stderr


def on_a_terminal(redis_server: RedisServer, texts: Sequence[str | Scored], *arguments: str) -> str:
    """What `ask` writes to a terminal, standard error included, when a worker answers with `texts`."""
    ours, theirs = pty.openpty()
    with serving(redis_server.url, lambda writer, request_id: writer.answer(request_id, texts)):
        process = subprocess.Popen([*COMMAND, "ask", QUESTION, *arguments], stdout=theirs, stderr=theirs)
        os.close(theirs)
        assert process.wait(60) == 0
    shown = os.read(ours, 4096).decode()
    os.close(ours)
    return shown.replace("\r\n", "\n")


def scored(text: str, probability: float) -> Scored:
    return Scored(text, ((1, math.log(probability), text.encode()),))


UNSURE: Final = (
    scored("sure", 0.9),
    scored(" likely", 0.5),
    scored(" hardly", 0.1),
    scored(" never", 0.01),
    scored("", 0.02),
    scored(" held\x1b", 0.95),
)
PLAIN: Final = "sure likely hardly never held"


def test_a_terminal_shows_a_tokens_probability_by_colour(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A piece that was held back has the colour of the least probable of its tokens."""
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    shown = on_a_terminal(redis_server, UNSURE, "--logprobs")
    pieces = ("32msure", "33m likely", "31m hardly", "4;31m never", "4;31m held␛")
    answer = "".join(f"\x1b[{piece}\x1b[0m" for piece in pieces) + "\n"
    assert answer in shown
    assert shown.partition(answer)[2].startswith("probability of each token: \x1b[32mat least 90%")
    assert "\x1b" not in on_a_terminal(redis_server, WEATHER)
    for name, value in (("TERM", "dumb"), ("NO_COLOR", "1")):
        monkeypatch.setenv(name, value)
        assert f"{PLAIN}␛\n" in on_a_terminal(redis_server, UNSURE, "--logprobs")
        monkeypatch.setenv("TERM", "xterm-256color")


def test_a_pipe_gets_text_without_colours(redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    with serving(redis_server.url, lambda writer, request_id: writer.answer(request_id, UNSURE)):
        done = tokenrelay("ask", QUESTION, "--logprobs")
    assert (done.stdout, done.stderr) == (f"{PLAIN}\x1b\n", "")


def test_a_terminal_gets_control_characters_made_visible(redis_server: RedisServer) -> None:
    shown = on_a_terminal(redis_server, ("a\x1b]0;title\x07", "\tb\n", "\x9b31mc"))
    assert "a␛]0;title␇" in shown
    assert "\x1b" not in shown
    assert "\x9b" not in shown
