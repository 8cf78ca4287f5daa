"""Gateway processes: `tokenrelay serve`, its start, shutdown, and death mid-stream."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final

import httpx
import pytest

from tests.gateway.events import dispatch, following, split_lines
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.gateway.live import WakingWriter
    from tests.redis_servers import RedisServer

SERVE: Final = (sys.executable, "-m", "tokenrelay.cli", "serve")
Serve = "Callable[..., tuple[subprocess.Popen[str], str]]"


@pytest.fixture
def serve(redis_server: RedisServer) -> Iterator[Callable[[], tuple[subprocess.Popen[str], str]]]:
    """Start `tokenrelay serve` on a free port; returns the process and the printed address."""
    processes: list[subprocess.Popen[str]] = []

    def start() -> tuple[subprocess.Popen[str], str]:
        environment = {**os.environ, "TOKENRELAY_REDIS_URL": redis_server.url}
        process = subprocess.Popen([*SERVE, "--port", "0"], stderr=subprocess.PIPE, text=True, env=environment)
        processes.append(process)
        assert process.stderr
        address = process.stderr.readline().strip()
        assert address.startswith("http://127.0.0.1:"), address
        wait_until(lambda: httpx.get(f"{address}/health").status_code == 200)
        return process, address

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def test_a_stream_goes_on_when_its_gateway_is_killed(
    serve: Callable[[], tuple[subprocess.Popen[str], str]], writer: WakingWriter
) -> None:
    (doomed, first), (_, second) = serve(), serve()
    request_id = httpx.post(f"{first}/requests", json={"prompt": "x"}).json()["request_id"]
    assert writer.take() == request_id
    writer.claim(request_id)
    writer.append(request_id, "It", " is", " sunny")
    seen: list[Any] = []
    with httpx.Client(timeout=60) as client:
        with client.stream("GET", f"{first}/requests/{request_id}/events") as response:
            events = dispatch(split_lines(response.iter_text()))
            seen += [next(events) for _ in range(4)]
            doomed.kill()
            with pytest.raises(httpx.TransportError):
                seen += list(events)
        writer.append(request_id, " and")
        headers = {"Last-Event-ID": seen[-1].last_id}
        with following(client, f"{second}/requests/{request_id}/events", **headers) as events:
            writer.append(request_id, " warm", ".")
            writer.finish(request_id)
            seen += list(events)
    assert [event.last_id for event in seen] == ["0-1", "0-2", "1-0", "2-0", "3-0", "4-0", "5-0", "6-0", "6-1"]
    assert "".join(event.json.get("text", "") for event in seen) == "It is sunny and warm."


def test_a_keyed_repeat_finds_the_choices_of_a_gateway_that_was_killed(
    serve: Callable[[], tuple[subprocess.Popen[str], str]], writer: WakingWriter
) -> None:
    (doomed, first), (_, second) = serve(), serve()
    body = {"model": "weather", "prompt": "x", "n": 3, "stream": True}
    headers = {"Idempotency-Key": "k"}
    with httpx.Client(timeout=60) as client:
        with client.stream("POST", f"{first}/v1/completions", json=body, headers=headers) as response:
            ids = [wait_until(writer.take) for _ in range(3)]
            for each in ids:
                writer.claim(each)
            writer.append(ids[0], "It")
            assert next(dispatch(split_lines(response.iter_text()))).json["choices"][0]["text"] == "It"
            doomed.kill()
        for index, each in enumerate(ids):
            writer.append(each, f" {index}")
            writer.finish(each)
        answer = client.post(f"{second}/v1/completions", json={**body, "stream": False}, headers=headers).json()
    assert answer["id"] == f"cmpl-{ids[0]}"
    assert [choice["text"] for choice in answer["choices"]] == ["It 0", " 1", " 2"]
    assert writer.take() is None


def test_sigterm_lets_readers_go_at_once_and_cancels_nothing(
    serve: Callable[[], tuple[subprocess.Popen[str], str]], writer: WakingWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if another client, waiting for a whole answer, keeps the process up for longer than the grace period."""
    monkeypatch.setenv("TOKENRELAY_DISCONNECT_GRACE_S", "0.1")
    monkeypatch.setenv("TOKENRELAY_FIRST_WORD_S", "0")
    process, address = serve()
    body = {"model": "weather", "messages": [{"role": "user", "content": "x"}]}
    with httpx.Client(timeout=60) as client, ThreadPoolExecutor(1) as threads:
        whole = threads.submit(httpx.post, f"{address}/v1/chat/completions", json=body, timeout=60)
        waiting = wait_until(writer.take)
        writer.claim(waiting)
        with client.stream("POST", f"{address}/v1/chat/completions", json={**body, "stream": True}) as response:
            assert response.status_code == 200
            request_id = wait_until(writer.take)
            writer.claim(request_id)
            process.send_signal(signal.SIGTERM)
            # Aborted, not ended properly: the client knows that it's incomplete.
            with pytest.raises(httpx.RemoteProtocolError):
                response.read()
        assert process.wait(60) in (0, -signal.SIGTERM)
        answer = whole.result()
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "stopping")
    assert answer.headers["Retry-After"].isdecimal()
    for each in (request_id, waiting):
        assert writer.append(each, "It") == "OK"
        assert writer.finish(each) == "OK"


def test_a_stream_that_waits_for_its_first_token_is_told_that_the_gateway_stops(
    serve: Callable[[], tuple[subprocess.Popen[str], str]], writer: WakingWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Formerly it got 200 just before the process ended."""
    monkeypatch.setenv("TOKENRELAY_FIRST_WORD_S", "60")
    process, address = serve()
    body = {"model": "weather", "messages": [{"role": "user", "content": "x"}], "stream": True}
    with ThreadPoolExecutor(1) as threads:
        asked = threads.submit(httpx.post, f"{address}/v1/chat/completions", json=body, timeout=60)
        request_id = wait_until(writer.take)
        writer.claim(request_id)
        process.send_signal(signal.SIGTERM)
        answer = asked.result()
    assert process.wait(60) in (0, -signal.SIGTERM)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "stopping")
    assert writer.append(request_id, "It") == "OK"
    assert writer.finish(request_id) == "OK"


def refused(*arguments: str, **environment: str) -> tuple[int, str]:
    done = subprocess.run(
        [*SERVE, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, **environment},
    )
    return done.returncode, done.stderr


def test_a_port_that_is_taken_is_one_line(redis_server: RedisServer) -> None:
    code, told = refused("--port", str(redis_server.port), TOKENRELAY_REDIS_URL=redis_server.url)
    assert code == 2
    assert "TOKENRELAY_HTTP_PORT" in told
    assert told.count("\n") == 1


def test_a_redis_that_is_not_there_is_one_line() -> None:
    code, told = refused(TOKENRELAY_REDIS_URL="redis://127.0.0.1:1/0")
    assert code == 3
    assert told.count("\n") == 1


def test_without_the_extra_it_says_how_to_get_it(redis_server: RedisServer) -> None:
    hidden = (
        "import sys; sys.modules['fastapi'] = None; sys.argv = ['tokenrelay', 'serve'];"
        "from tokenrelay.cli.__main__ import main; main()"
    )
    environment = {**os.environ, "TOKENRELAY_REDIS_URL": redis_server.url}
    done = subprocess.run([sys.executable, "-c", hidden], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 2
    assert "pip install 'tokenrelay[gateway]'" in done.stderr
    assert done.stderr.count("\n") == 1


def test_api_key_prints_the_key_apart_from_its_entry() -> None:
    command = (sys.executable, "-m", "tokenrelay.cli", "api-key", "alice")
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert '"name": "alice"' in done.stdout
    assert done.stderr.strip() not in done.stdout
