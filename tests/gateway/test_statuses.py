"""An error has the same status in every API, streamed or whole, and the types that clients know."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, get_args

import openai
import pytest
from hypothesis import given, settings
from openai.types.responses import Response, ResponseStreamEvent

from tests.gateway.events import parse
from tests.gateway.test_openai import ASKED
from tests.gateway.test_views import view_of
from tests.streams import whole_streams
from tests.waiting import wait_until
from tests.writers import WEATHER, End, serving

if TYPE_CHECKING:
    from collections.abc import Iterator

    import httpx

    from tests.gateway.conftest import MakeGateway
    from tests.gateway.live import LiveGateway, WakingWriter
    from tests.redis_servers import RedisServer
    from tests.writers import Writer
    from tokenrelay.shared.wire.entries import Entry

ASKS: Final[dict[str, dict[str, Any]]] = {
    "/v1/chat/completions": {"messages": ASKED},
    "/v1/completions": {"prompt": "x"},
    "/v1/responses": {"input": "x"},
}
PARAMS: Final = {"/v1/chat/completions": "messages", "/v1/completions": "prompt", "/v1/responses": "input"}
TOO_LONG: Final = "this model's maximum context length is 8192 tokens, and the prompt has 9000"
FAULTS: Final = {
    "too long": (End("failed", "error", code="prompt_too_long", message=TOO_LONG), 400, "context_length_exceeded"),
    "refused": (End("failed", "error", code="invalid_request", message="the template refuses"), 400, "invalid_request"),
    "control token": (End("failed", "error", code="control_token", message="no"), 400, "control_token"),
    "unsupported": (End("failed", "error", code="unsupported_option", message="no"), 400, "unsupported_option"),
    "poison": (End("failed", "error", code="poison_request", message="killed"), 500, "poison_request"),
    "internal": (End("failed", "error", code="internal_error", message="broken"), 500, "internal_error"),
    "unheard of": (End("failed", "error", code="a_later_version_s", message="new"), 500, "a_later_version_s"),
    "cancelled": (End("cancelled", "cancelled"), 410, "cancelled"),
    "expired": (End("expired", "deadline"), 503, "expired"),
}


@contextmanager
def failing(redis_server: RedisServer, end: End, tokens: int) -> Iterator[None]:
    """A worker that ends requests in this way after a number of tokens."""

    def fail(worker: Writer, request_id: str) -> None:
        worker.answer(request_id, WEATHER[:tokens], end)

    with serving(redis_server.url, fail):
        yield


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("path", ASKS)
@pytest.mark.parametrize("fault", FAULTS)
def test_before_the_first_token(
    http: httpx.Client, redis_server: RedisServer, writer: WakingWriter, fault: str, path: str, stream: bool
) -> None:
    end, status, code = FAULTS[fault]
    with failing(redis_server, end, 0):
        answer = http.post(path, json={"model": "weather", "stream": stream, **ASKS[path]})
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert answer.headers["x-should-retry"] == "false"
    assert http.get(f"/requests/{answer.headers['x-request-id']}").json()["state"] == end.state
    if fault == "too long":
        assert "maximum context length is 8192 tokens" in answer.json()["error"]["message"]
        assert answer.json()["error"]["param"] == PARAMS[path]


@pytest.mark.parametrize("path", ASKS)
@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault != "expired"])
def test_after_the_first_token(
    http: httpx.Client, redis_server: RedisServer, writer: WakingWriter, fault: str, path: str
) -> None:
    """Whole answers keep the status; a started stream ends with an equivalent error event."""
    end, status, code = FAULTS[fault]
    asked = {"model": "weather", **ASKS[path]}
    with failing(redis_server, end, 2):
        whole = http.post(path, json=asked)
        streamed = http.post(path, json={**asked, "stream": True})
    assert (whole.status_code, whole.json()["error"]["code"]) == (status, code)
    assert streamed.status_code == 200
    events = [event for event in parse(streamed.text) if event.data != "[DONE]"]
    if path != "/v1/responses":
        assert events[-1].json["error"]["code"] == code
    elif fault == "cancelled":
        assert (events[-1].kind, events[-1].json["response"]["status"]) == ("response.incomplete", "cancelled")
    else:
        assert (events[-1].kind, events[-1].json["response"]["error"]["code"]) == ("response.failed", code)


@pytest.mark.parametrize("path", ASKS)
def test_openai_raises_the_same_in_every_api(
    gateway: LiveGateway, redis_server: RedisServer, writer: WakingWriter, path: str
) -> None:
    """With the client's default retries: an ended request isn't retried."""
    with (
        failing(redis_server, FAULTS["too long"][0], 0),
        openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none") as client,
    ):
        creates: dict[str, Any] = {
            "/v1/chat/completions": client.chat.completions.create,
            "/v1/completions": client.completions.create,
            "/v1/responses": client.responses.create,
        }
        for stream in (False, True):
            with pytest.raises(openai.BadRequestError, match="maximum context length is 8192 tokens"):
                creates[path](model="weather", stream=stream, **ASKS[path])
    assert len(writer.redis.keys("tokenrelay:{*}:request")) == 2


@pytest.mark.parametrize("path", ASKS)
def test_a_stream_begins_with_its_first_token(make_gateway: MakeGateway, writer: WakingWriter, path: str) -> None:
    """Whatever the timeout for its status."""
    began = threading.Event()
    with make_gateway(first_word_s=60).client() as client:

        def write() -> None:
            request_id = wait_until(writer.take)
            writer.claim(request_id)
            writer.append(request_id, "It")
            began.wait(20)
            writer.finish(request_id)

        thread = threading.Thread(target=write)
        thread.start()
        with client.stream("POST", path, json={"model": "weather", "stream": True, **ASKS[path]}) as response:
            began.set()
            assert response.status_code == 200
            assert "It" in response.read().decode()
        thread.join()


@pytest.mark.parametrize(
    ("first_word_s", "more"), [(0.2, {}), (0.0, {}), (60.0, {"background": True})], ids=["late", "off", "background"]
)
def test_a_stream_that_nobody_answers_begins_all_the_same(
    make_gateway: MakeGateway, writer: WakingWriter, first_word_s: float, more: dict[str, Any]
) -> None:
    body = {"model": "weather", "input": "x", "stream": True, **more}
    with (
        make_gateway(first_word_s=first_word_s, comment_s=0.1).client() as client,
        client.stream("POST", "/v1/responses", json=body) as response,
    ):
        assert response.status_code == 200
        text = response.iter_text()
        received = ""
        while ": waiting" not in received:
            received += next(text)
        request_id = wait_until(writer.take)
        writer.answer(request_id, (), FAULTS["too long"][0])
        received += "".join(text)
    (*_, last) = parse(received)
    assert (last.kind, last.json["response"]["error"]["code"]) == ("response.failed", "context_length_exceeded")


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("path", [*ASKS, "/requests"])
def test_a_prompt_beyond_the_operators_limit_is_one_beyond_the_context(
    make_gateway: MakeGateway, writer: WakingWriter, path: str, stream: bool
) -> None:
    """With OpenAI's code and wording, by which clients decide to shorten the conversation."""
    text = "x" * 101
    ask: dict[str, Any] = {
        "/v1/chat/completions": {"messages": [{"role": "user", "content": text}]},
        "/v1/responses": {"input": text},
    }
    own: dict[str, Any] = {} if path == "/requests" else {"stream": stream}
    body = {"model": "weather", **own, **ask.get(path, {"prompt": text})}
    with make_gateway(max_prompt_chars=100).client() as client:
        answer = client.post(path, json=body)
    error, param = answer.json()["error"], PARAMS.get(path, "prompt")
    assert (answer.status_code, error["code"], error["param"]) == (400, "context_length_exceeded", param)
    assert (error["type"], error["limit"]) == ("invalid_request_error", 100)
    assert error["message"].startswith(f"{param}: the prompt is too long: 101 characters, at most 100 are allowed")
    assert "this model's maximum context length is 100 characters" in error["message"]


def test_a_key_that_comes_again_hears_the_same(
    http: httpx.Client, redis_server: RedisServer, writer: WakingWriter
) -> None:
    end, status, _ = FAULTS["poison"]
    headers = {"Idempotency-Key": "k"}
    with failing(redis_server, end, 0):
        answers = [
            http.post(
                "/v1/chat/completions", json={"model": "weather", "messages": ASKED, "stream": stream}, headers=headers
            )
            for stream in (True, False, True)
        ]
    assert {answer.status_code for answer in answers} == {status}
    assert len({answer.headers["x-request-id"] for answer in answers}) == 1


EVENTS: Final[dict[str, Any]] = {
    kind: event
    for event in get_args(get_args(ResponseStreamEvent)[0])
    for kind in get_args(event.model_fields["type"].annotation)
}
"""The event's type → the openai package's class for it."""


@settings(deadline=None)  # pydantic builds each class at its first use
@given(entries=whole_streams())
def test_every_event_is_one_of_openai_s(entries: list[Entry]) -> None:
    """The package's own types validate each event and response, including field values."""
    for event in parse(b"".join(view_of("response", entries).events).decode()):
        told = event.json
        if error := (told.get("response") or {}).get("error"):
            error["code"] = "server_error"  # its list of codes is shorter than what its own service sends
        assert EVENTS[event.kind].model_validate(told).type == event.kind


def test_a_running_response(http: httpx.Client, writer: WakingWriter) -> None:
    created = http.post("/v1/responses", json={"model": "weather", "input": "x", "background": True}).json()

    def now() -> tuple[str, list[str]]:
        response = Response.model_validate(http.get(f"/v1/responses/{created['id']}").json())
        items: list[Any] = response.output
        return str(response.status), [item.status for item in items]

    assert now() == ("queued", [])
    request_id = writer.take() or ""
    writer.claim(request_id)
    assert now() == ("in_progress", [])
    writer.append(request_id, "It", " is")
    assert now() == ("in_progress", ["in_progress"])
    assert http.post(f"/v1/responses/{created['id']}/cancel").json()["status"] == "cancelled"
    assert now() == ("cancelled", ["incomplete"])
