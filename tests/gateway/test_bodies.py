"""Request bodies of real clients: second turns, unknown fields, names in errors, idempotency keys across an upgrade."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final

import openai
import pytest

from tests.gateway.events import parse
from tests.writers import serving
from tokenrelay.shared.wire.entries import text

if TYPE_CHECKING:
    from collections.abc import Iterator

    import httpx
    from redis import Redis

    from tests.gateway.conftest import MakeGateway
    from tests.gateway.live import LiveGateway, WakingWriter
    from tests.redis_servers import RedisServer

ASKED: Final[list[Any]] = [{"role": "user", "content": "What is the weather today?"}]
NEXT: Final[dict[str, str]] = {"role": "user", "content": "And tomorrow?"}
ANSWER: Final = "It is sunny and warm."
CHAT: Final = {"model": "weather", "messages": ASKED}


@pytest.fixture
def worker(redis_server: RedisServer, writer: WakingWriter) -> Iterator[None]:
    """A live worker that answers everything with the weather."""
    with serving(redis_server.url):
        yield


@pytest.fixture
def client(gateway: LiveGateway) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


def stored(redis: Redis) -> dict[bytes, bytes]:
    """The hash of the only request."""
    (key,) = map(text, redis.keys("tokenrelay:{*}:request"))
    found: dict[bytes, bytes] = redis.hgetall(key)  # type: ignore[assignment]
    return found


@pytest.mark.usefixtures("worker")
class TestSecondTurns:
    """The first answer, as parsed by the `openai` package, becomes the history of the second question."""

    def test_chat(self, client: openai.OpenAI) -> None:
        first = client.chat.completions.create(model="weather", messages=ASKED).choices[0].message
        for kept in (first, first.model_dump(), first.model_dump(exclude_none=True)):
            history: Any = [*ASKED, kept, NEXT]
            answer = client.chat.completions.with_raw_response.create(model="weather", messages=history)
            assert answer.parse().choices[0].message.content == ANSWER
            assert "x-tokenrelay-ignored" not in answer.headers

    def test_chat_streamed(self, client: openai.OpenAI) -> None:
        with client.chat.completions.stream(model="weather", messages=ASKED) as stream:
            first: Any = stream.get_final_completion().choices[0].message
        history: Any = [*ASKED, first.model_dump(), NEXT]
        with client.chat.completions.stream(model="weather", messages=history) as stream:
            assert stream.get_final_completion().choices[0].message.content == ANSWER

    def test_responses(self, client: openai.OpenAI) -> None:
        first = client.responses.create(model="weather", input=ASKED)
        items: list[Any] = [item.model_dump() for item in first.output]
        plain = [{"role": item["role"], "content": item["content"]} for item in items]
        for kept in (first.output, items, plain):
            history: Any = [*ASKED, *kept, NEXT]
            answer = client.responses.with_raw_response.create(model="weather", input=history)
            assert answer.parse().output_text == ANSWER
            assert "x-tokenrelay-ignored" not in answer.headers

    def test_responses_streamed(self, client: openai.OpenAI) -> None:
        with client.responses.stream(model="weather", input=ASKED) as stream:
            output: Any = stream.get_final_response().output
        history: Any = [*ASKED, *output, NEXT]
        with client.responses.stream(model="weather", input=history) as stream:
            assert stream.get_final_response().output_text == ANSWER


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", CHAT),
        ("/v1/chat/completions", {**CHAT, "stream": True}),
        ("/v1/completions", {"model": "weather", "prompt": "x"}),
        ("/v1/completions", {"model": "weather", "prompt": "x", "stream": True}),
        ("/v1/responses", {"model": "weather", "input": "x"}),
        ("/v1/responses", {"model": "weather", "input": "x", "stream": True}),
        ("/v1/responses", {"model": "weather", "input": "x", "background": True}),
    ],
)
def test_an_unknown_field_is_named_in_header_and_log(
    http: httpx.Client, path: str, body: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="tokenrelay.gateway"):
        answer = http.post(path, json={**body, "foo": 1, "bar\r\nSet-Cookie: a": 2, "user": "me", "nothing": None})
    assert answer.status_code == 200
    assert answer.headers["x-tokenrelay-ignored"] == "foo, bar??Set-Cookie??a"
    (line,) = [record.getMessage() for record in caplog.records if "ignored" in record.getMessage()]
    assert line == f"request {answer.headers['x-request-id']}: ignored the fields foo, bar??Set-Cookie??a"


@pytest.mark.usefixtures("writer")
def test_an_operator_may_have_unknown_fields_refused(make_gateway: MakeGateway, redis: Redis) -> None:
    with make_gateway(unknown_fields="refuse").client() as http:
        answer = http.post("/v1/chat/completions", json={**CHAT, "reasoning_effort": "low", "foo": 1})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["param"], error["code"], error["message"]) == ("foo", "unknown_parameter", "foo: unknown field")
    assert not redis.keys("tokenrelay:{*")


@pytest.mark.usefixtures("writer")
@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/chat/completions", {**CHAT, "max_tokens": 0}, "max_tokens"),
        ("/v1/chat/completions", {**CHAT, "max_completion_tokens": -2}, "max_completion_tokens"),
        ("/v1/completions", {"model": "weather", "prompt": "x", "max_tokens": 0}, "max_tokens"),
        ("/v1/completions", {"model": "weather", "prompt": " "}, "prompt"),
        ("/v1/responses", {"model": "weather", "input": "x", "max_output_tokens": 0}, "max_output_tokens"),
        ("/v1/responses", {"model": "weather", "input": " "}, "input"),
        ("/v1/responses", {"model": "weather", "input": "x" * 200_001}, "input"),
        ("/v1/responses", {"model": "weather", "input": "x", "stop": "x" * 100_000}, "stop"),
        (
            "/v1/responses",
            {"model": "weather", "input": [{"role": "user", "content": [{"type": "x"}]}]},
            "input.0.content.0",
        ),
        ("/v1/chat/completions", {**CHAT, "messages": [{"role": "user", "content": " "}]}, "messages"),
        ("/requests", {"prompt": "x", "max_new_tokens": 0}, "max_new_tokens"),
        ("/requests", {"prompt": "x", "temperature": "hot"}, "temperature"),
        ("/requests", {"messages": [{"role": "user", "content": 5}]}, "messages.0.content"),
        ("/requests", {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content.0"),
    ],
)
def test_errors_name_what_the_caller_sent(http: httpx.Client, path: str, body: dict[str, Any], param: str) -> None:
    answer = http.post(path, json=body)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["param"], error["message"].partition(": ")[0]) == (param, param)


def test_a_misspelt_option_of_ours_is_an_error_that_says_what_was_meant(http: httpx.Client, redis: Redis) -> None:
    """`/requests` has our own fields: no client sends another server's fields to it, so it can be strict."""
    answer = http.post("/requests", json={"prompt": "x", "max_new_tokenss": 5})
    assert answer.status_code == 400
    assert "did you mean max_new_tokens?" in answer.json()["error"]["message"]
    assert not redis.keys("tokenrelay:{*")


@pytest.mark.usefixtures("writer")
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/requests"])
@pytest.mark.parametrize(
    ("content_type", "told"),
    [
        (None, "Content-Type: is missing; send application/json"),
        ("text/plain", "Content-Type: is 'text/plain'; send application/json"),
        ("application/x-www-form-urlencoded", "send application/json"),
    ],
)
def test_a_body_that_is_not_announced_as_json(
    http: httpx.Client, path: str, content_type: str | None, told: str
) -> None:
    headers = {} if content_type is None else {"Content-Type": content_type}
    answer = http.post(path, content=b'{"model": "weather"}', headers=headers)
    assert answer.status_code == 400
    assert told in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"[]", "the body: must be a JSON object"),
        (b"", "the body: is missing"),
        (b"{", "the body isn't JSON"),
        (b'{"a": "\xff"}', "the body can't be parsed"),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "the body can't be parsed"),
        (b'{"a": ' + b"9" * 5000 + b"}", "the body can't be parsed"),
    ],
)
def test_a_body_that_is_no_json_object(http: httpx.Client, content: bytes, told: str) -> None:
    answer = http.post("/v1/responses", content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith(told)


KEYED: Final[list[tuple[str, dict[str, Any], str]]] = [
    (
        "/v1/chat/completions",
        {**CHAT, "stream": True},
        "bc46cdeb3353577ebd89f87a8364d790fb383ecc903ff195f6c393e30a4b65ee",
    ),
    (
        "/v1/completions",
        {"model": "weather", "prompt": "x", "temperature": 0.5},
        "843fcd6e458278023c4d7a476ae75fbcc89f65e1ad848a269d052b87d3966105",
    ),
    (
        "/v1/responses",
        {"model": "weather", "input": "x", "instructions": "Be brief.", "metadata": {"a": "b"}},
        "351c00f7781b40f254304348fe8d6d86741b9963db4aec3a91f68f81dff93d36",
    ),
    ("/requests", {"prompt": "x"}, "805f9194927c48ec7ef76b6058a980f5e7040c2cbb7736ea847a14fc67077951"),
]


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize(("path", "body", "hashed_before"), KEYED)
def test_an_idempotency_key_attaches_over_an_upgrade(
    http: httpx.Client, redis: Redis, path: str, body: dict[str, Any], hashed_before: str
) -> None:
    """The previous release's hash of this body; another hash would mean a 422 for a client that retries."""
    assert http.post(path, json=body, headers={"Idempotency-Key": "k"}).status_code in (200, 202)
    assert stored(redis)[b"body_sha256"].decode() == hashed_before


@pytest.mark.usefixtures("worker")
def test_a_limit_beyond_the_operators_is_cut(make_gateway: MakeGateway) -> None:
    """A missing limit is reported as null."""
    with make_gateway(max_new_tokens_limit=300).client() as http:
        told = [
            http.post("/v1/responses", json={"model": "weather", "input": "x", **limit}).json()["max_output_tokens"]
            for limit in ({}, {"max_output_tokens": 5}, {"max_output_tokens": 32_000})
        ]
    assert told == [None, 5, 300]


@pytest.mark.usefixtures("worker")
def test_requests_takes_a_chats_messages_and_scalars(http: httpx.Client, redis: Redis) -> None:
    messages = [*ASKED, {"role": "assistant", "content": ["a", "b"], "refusal": None, "odd": 1}, NEXT]
    answer = http.post("/requests", json={"messages": messages, "temperature": "0.5", "seed": 6.0, "top_p": None})
    assert (answer.status_code, answer.headers["x-tokenrelay-ignored"]) == (202, "messages.1.odd")
    body = stored(redis)[b"request"]
    assert b'"content":"a\\nb"' in body
    assert b'"temperature":0.5' in body
    assert b'"seed":6' in body


@pytest.mark.usefixtures("worker")
def test_requests_takes_one_stop_string(http: httpx.Client, redis: Redis) -> None:
    assert http.post("/requests", json={"prompt": "x", "stop": "END"}).status_code == 202
    assert b'"stop":["END"]' in stored(redis)[b"request"]


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize("limit", [{}, {"max_output_tokens": None}, {"max_tokens": -1}])
def test_no_limit_is_told_as_none(http: httpx.Client, limit: dict[str, Any]) -> None:
    """Whole, streamed, in the background, and retrieved later."""
    body = {"model": "weather", "input": "x", "metadata": {"a": "b"}, **limit}
    whole = http.post("/v1/responses", json=body).json()
    begun = http.post("/v1/responses", json={**body, "background": True}).json()
    read = http.get(f"/v1/responses/{whole['id']}").json()
    streamed = [event.json for event in parse(http.post("/v1/responses", json={**body, "stream": True}).text)]
    told = [whole, begun, read, *(event["response"] for event in streamed if "response" in event)]
    assert len(told) == 6
    assert {each["max_output_tokens"] for each in told} == {None}
    assert all(each["metadata"] == {"a": "b"} for each in told)


@pytest.mark.usefixtures("worker")
def test_metadata_as_large_as_it_may_be_is_taken(http: httpx.Client) -> None:
    """Whatever the gateway adds to the metadata."""
    for size in range(16_300, 16_390, 6):
        body = {"model": "weather", "input": "x", "metadata": {"a": "x" * size}}
        answer = http.post("/v1/responses", json=body)
        assert answer.status_code in (200, 400)
        if answer.status_code == 400:
            assert answer.json()["error"]["param"] == "metadata"
            return
    raise AssertionError("all were taken")
