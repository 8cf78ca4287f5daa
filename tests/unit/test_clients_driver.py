"""The driver of `make clients`: its tap forwards every byte and records every call, and no row passes without calls."""

from __future__ import annotations

import json
import socket
import threading
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest

from tests.clients.catalogue import CLIENTS, Client
from tests.clients.environments import RECIPES
from tests.clients.expected import Expected
from tests.clients.report import BEGIN, END, write_page
from tests.clients.session import JSON_QUESTIONS, QUESTIONS, Outcome
from tests.clients.tap import Call, Tap
from tests.clients.verdict import Row, fault_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CLIENT = Client("some", "some.py", r"^some/")
ANSWERS = ["one", "two", "three"]
OBJECTS = ['{"place":"Oslo"}', '{"place":"Bergen"}', '{"place":"Oslo","rain":true}']
SCORES = [("It", -0.25), (" is", 0.0)]
EXPECTED = Expected(texts=ANSWERS, objects=OBJECTS, days='{"days":["sun","rain"]}', logprobs=SCORES)


class Echo(BaseHTTPRequestHandler):
    """Answers with the body it was sent, on connections that are kept."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(404 if self.path == "/missing" else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        del format, args


@contextmanager
def echo() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Echo) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def request(path: str, body: bytes, *headers: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: x", "User-Agent: some/1", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


def exchanged(url: str, *pieces: bytes) -> bytes:
    """Send the pieces over one connection, each after the answer to the one before; the last answer's body."""
    host, _, port = url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        answer = b""
        for piece in pieces:
            connection.sendall(piece)
            answer = connection.recv(65_536)
            while not answer.partition(b"\r\n\r\n")[2]:
                answer += connection.recv(65_536)
    return answer.partition(b"\r\n\r\n")[2]


class TestTap:
    def test_it_notes_every_call_of_a_kept_connection(self) -> None:
        with echo() as upstream, Tap(upstream) as tap:
            assert exchanged(tap.url, request("/a", b'{"n": 1}'), request("/missing", b"[2]")) == b"[2]"
            calls = [(call.method, call.path, call.agent, call.asked, call.status) for call in tap.calls]
        assert calls == [("POST", "/a", "some/1", {"n": 1}, 200), ("POST", "/missing", "some/1", {}, 404)]

    def test_an_offered_upgrade_passes_and_hides_nothing(self) -> None:
        offer = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAEAAEAA")
        with echo() as upstream, Tap(upstream) as tap:
            sent = request("/a", b"{}", *offer)
            assert exchanged(tap.url, sent, request("/b", b"{}")) == b"{}"
            assert [(call.path, call.status) for call in tap.calls] == [("/a", 200), ("/b", 200)]

    def test_leaving_is_passed_on(self) -> None:
        with (
            socket.create_server(("127.0.0.1", 0)) as server,
            Tap(f"http://127.0.0.1:{server.getsockname()[1]}") as tap,
        ):
            host, _, port = tap.url.removeprefix("http://").partition(":")
            left = socket.create_connection((host, int(port)), timeout=60)
            accepted, _ = server.accept()
            accepted.settimeout(10)
            left.close()
            assert accepted.recv(1) == b""
            accepted.close()


def turns(scenario: str = "whole", agent: str = "some/1", status: int = 200, history: bool = True) -> Outcome:
    """A passing outcome, with changes by name."""
    said = " ".join([*QUESTIONS, *ANSWERS]) if history else QUESTIONS[-1]
    stream = "true" if scenario.endswith("streamed") else "false"
    body = f'{{"messages": "{said}", "stream": {stream}}}'.encode()
    calls = tuple(Call("POST", "/v1/x", "1.1", {"user-agent": agent}, body, status) for _ in QUESTIONS)
    return Outcome(scenario, ANSWERS, None, calls)


def objects_asked(answers: list[Any], form: str = "json_schema", said: list[str] = OBJECTS) -> Outcome:
    messages = [{"role": "user", "content": text} for text in (*JSON_QUESTIONS, *said)]
    body = json.dumps({"messages": messages, "response_format": {"type": form}}).encode()
    calls = tuple(Call("POST", "/v1/x", "1.1", {"user-agent": "some/1"}, body, 200) for _ in JSON_QUESTIONS)
    return Outcome("structured_whole", answers, None, calls)


class TestVerdict:
    @pytest.mark.parametrize("scenario", ["whole", "responses_streamed"])
    def test_nothing_is_wrong(self, scenario: str) -> None:
        assert fault_of(CLIENT, turns(scenario), EXPECTED) == ""

    @pytest.mark.parametrize(
        ("outcome", "fault"),
        [
            (Outcome("whole", ANSWERS, None, ()), "saw no call"),
            (turns(agent="another/1"), "called as 'another/1'"),
            (turns(status=400), "was answered 400"),
            (turns(history=False), "lacks earlier ones"),
            (Outcome("whole", ["one", "two", "else"], None, turns().calls), "other answers"),
            (Outcome("whole", ["one"], None, turns().calls), "no answer per turn"),
            (Outcome("streamed", ANSWERS, None, turns("whole").calls), "not asked as a stream"),
            (Outcome("whole", None, "SomeError: x", turns().calls), "SomeError: x"),
            (Outcome("too_long", "text", None, turns().calls), "no error"),
            (Outcome("too_long", None, "BadRequestError: too large", turns().calls), "another error"),
            (Outcome("wrong_key", None, "NotFoundError", turns().calls), "another error"),
        ],
    )
    def test_what_is_wrong(self, outcome: Outcome, fault: str) -> None:
        assert fault in fault_of(CLIENT, outcome, EXPECTED)

    def test_objects_are_judged_by_their_values_the_schema_and_the_history(self) -> None:
        objects = [json.loads(each) for each in OBJECTS]
        assert fault_of(CLIENT, objects_asked(objects), EXPECTED) == ""
        assert "asked without a schema" in fault_of(CLIENT, objects_asked(objects, form="json_object"), EXPECTED)
        assert "lacks earlier ones" in fault_of(CLIENT, objects_asked(objects, said=OBJECTS[1:]), EXPECTED)
        assert "other answers" in fault_of(CLIENT, objects_asked(OBJECTS), EXPECTED)

    def test_an_object_through_a_kill_is_the_undisturbed_one(self) -> None:
        asked = objects_asked([]).calls[:1]
        assert fault_of(CLIENT, Outcome("killed_structured", ["sun", "rain"], None, asked), EXPECTED) == ""
        assert "other days" in fault_of(CLIENT, Outcome("killed_structured", ["sun", "snow"], None, asked), EXPECTED)

    @pytest.mark.parametrize(
        ("given", "fault"),
        [
            ([["It", -0.2501, 2], [" is", 0.0, 2]], ""),
            ([["It", -0.25, 2]], "other tokens"),
            (None, "other tokens"),
            ([["It", -0.26, 2], [" is", 0.0, 2]], "other log-probabilities"),
            ([["It", -0.25, 2], [" is", 0.0, 1]], "other numbers of alternatives"),
        ],
    )
    def test_log_probabilities(self, given: list[list[object]] | None, fault: str) -> None:
        found = fault_of(CLIENT, Outcome("logprobs_stream", given, None, turns().calls), EXPECTED)
        assert found.startswith(fault)
        assert bool(found) == bool(fault)

    def test_references_stand_for_answers_and_for_nothing_else(self) -> None:
        said = [*QUESTIONS, *[{"type": "item_reference", "id": "msg_1"}] * 2]
        body = json.dumps({"input": said}).encode()
        calls = tuple(Call("POST", "/", "1.1", {"user-agent": "some/1"}, body, 200) for _ in QUESTIONS)
        assert fault_of(CLIENT, Outcome("responses_whole", ANSWERS, None, calls), EXPECTED) == ""
        calls[-1].body = json.dumps({"input": said[:-1]}).encode()
        assert "lacks earlier ones" in fault_of(CLIENT, Outcome("responses_whole", ANSWERS, None, calls), EXPECTED)
        calls[-1].body = json.dumps({"input": ["Will it rain tomorrow?", *said[3:]]}).encode()
        assert "lacks earlier ones" in fault_of(CLIENT, Outcome("responses_whole", ANSWERS, None, calls), EXPECTED)

    def test_a_row_without_results_is_red(self) -> None:
        assert Row("some").red
        assert Row("some", results={"whole": "fault"}).red
        assert Row("some", results={"whole": ""}, failed="its process ended").red
        assert not Row("some", results={"whole": ""}).red
        assert not Row("some", skipped="there is no java on PATH").red


def test_every_client_has_a_recipe_and_a_name_of_its_own() -> None:
    assert [client.recipe for client in CLIENTS if not (RECIPES / client.recipe).exists()] == []
    assert len({client.name for client in CLIENTS}) == len(CLIENTS)


def test_the_page_gets_the_results_and_keeps_those_of_other_clients(tmp_path: Path) -> None:
    page = tmp_path / "clients.md"
    page.write_text(f"# Clients\n{BEGIN}\n{END}\nmore\n", "utf-8")
    write_page(page, [Row("some", {"some": "1.2"}, 7, {"whole": "a fault"}), Row("other", skipped="there is no java")])
    write_page(page, [Row("some", {"some": "1.3"}, 8, {"whole": ""})])
    today = f"{datetime.now(UTC):%Y-%m-%d}"
    assert page.read_text("utf-8").splitlines() == [
        "# Clients",
        BEGIN,
        "| client | version | calls | scenarios | result | run on |",
        "|---|---|---:|---|---|---|",
        f"| other |  | 0 |  | skipped: there is no java | {today} |",
        f"| some | some 1.3 | 8 | whole | ok | {today} |",
        END,
        "more",
    ]
