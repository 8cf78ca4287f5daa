"""`n` choices over HTTP: streamed interleaved and whole, by OpenAI's own client too, and each a request of its own."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import httpx
import openai
import pytest
from pydantic import SecretStr

from tests.gateway.events import dispatch, following, split_lines
from tests.waiting import wait_until
from tests.writers import WEATHER, End, serving
from tokenrelay.gateway.core.tenants import hash_of
from tokenrelay.shared.wire import keys
from tokenrelay.shared.wire.entries import text

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from redis import Redis

    from tests.gateway.conftest import MakeGateway
    from tests.gateway.live import LiveGateway, WakingWriter
    from tests.redis_servers import RedisServer
    from tests.writers import Writer

ASKED: Final[Any] = [{"role": "user", "content": "What is the weather today?"}]
CHAT: Final = {"model": "weather", "messages": ASKED}
PROMPT: Final = {"model": "weather", "prompt": "x"}
SAID: Final = {0: WEATHER, 1: ("It", " snows"), 2: ("Rain",)}


def respond(writer: Writer, request_id: str) -> None:
    """Each choice says something else."""
    request: Any = writer.request(request_id)
    writer.answer(request_id, SAID[request.get("choice", 0)])


@pytest.fixture
def worker(redis_server: RedisServer) -> Iterator[None]:
    with serving(redis_server.url, respond):
        yield


@pytest.fixture
def client(gateway: LiveGateway) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def take_all(writer: WakingWriter, n: int) -> list[str]:
    """Claim n choices, in their order."""
    ids = [wait_until(writer.take) for _ in range(n)]
    for each in ids:
        writer.claim(each)
    return ids


def data(events: Sequence[Any]) -> list[Any]:
    return [event.data if event.data == "[DONE]" else event.json for event in events]


@contextmanager
def streaming(gateway: LiveGateway, path: str, body: dict[str, Any]) -> Iterator[Iterator[Any]]:
    with gateway.client() as client, client.stream("POST", path, json={**body, "stream": True}) as response:
        assert response.status_code == 200, response.read()
        yield dispatch(split_lines(response.iter_text()))


@pytest.mark.usefixtures("worker")
class TestOpenAIsClient:
    """The package `openai`, unmodified."""

    def test_chat_whole(self, client: openai.OpenAI) -> None:
        answer = client.chat.completions.create(model="weather", messages=ASKED, n=3, seed=7)
        assert {choice.index: choice.message.content for choice in answer.choices} == {
            index: "".join(said) for index, said in SAID.items()
        }
        assert [choice.finish_reason for choice in answer.choices] == ["stop"] * 3
        assert answer.usage is not None
        used = (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens)
        assert used == (3, 9, 12), "the prompt counts once"

    def test_chat_streamed(self, client: openai.OpenAI) -> None:
        with client.chat.completions.create(
            model="weather", messages=ASKED, n=3, stream=True, stream_options={"include_usage": True}
        ) as stream:
            chunks = list(stream)
        said, ended = {0: "", 1: "", 2: ""}, []
        for choice in (choice for chunk in chunks for choice in chunk.choices):
            said[choice.index] += choice.delta.content or ""
            ended += [choice.index] if choice.finish_reason == "stop" else []
        assert said == {index: "".join(parts) for index, parts in SAID.items()}
        assert sorted(ended) == [0, 1, 2]
        assert len({chunk.id for chunk in chunks}) == 1
        assert [chunk.usage is not None for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
        assert chunks[-1].usage is not None
        assert (chunks[-1].usage.prompt_tokens, chunks[-1].usage.completion_tokens) == (3, 9)

    def test_its_accumulator_takes_it(self, client: openai.OpenAI) -> None:
        with client.chat.completions.stream(model="weather", messages=ASKED, n=3) as stream:
            choices = stream.get_final_completion().choices
        assert [choice.message.content for choice in choices] == ["".join(said) for said in SAID.values()]

    def test_completions(self, client: openai.OpenAI) -> None:
        whole = client.completions.create(model="weather", prompt="x", n=3)
        assert [choice.text for choice in whole.choices] == ["".join(said) for said in SAID.values()]
        assert whole.usage is not None
        assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (3, 9)
        said = {0: "", 1: "", 2: ""}
        for chunk in client.completions.create(model="weather", prompt="x", n=3, stream=True):
            for choice in chunk.choices:
                said[choice.index] += choice.text
        assert list(said.values()) == ["".join(parts) for parts in SAID.values()]


def test_streams_interleave_as_tokens_come(writer: WakingWriter, make_gateway: MakeGateway) -> None:
    """Each token is sent when it is there, whichever choice it belongs to."""
    with streaming(make_gateway(first_word_s=0), "/v1/completions", {**PROMPT, "n": 3}) as events:
        ids = take_all(writer, 3)
        for index, said in ((2, "a"), (0, "b"), (1, "c"), (2, "d"), (0, "e")):
            writer.append(ids[index], said)
            (choice,) = next(events).json["choices"]
            assert (choice["index"], choice["text"]) == (index, said)
        for index in (1, 2, 0):
            writer.finish(ids[index])
            (choice,) = next(events).json["choices"]
            assert (choice["index"], choice["finish_reason"]) == (index, "stop")
        assert [event.data for event in events] == ["[DONE]"]


def test_each_choice_is_a_request_of_its_own(http: httpx.Client, writer: WakingWriter) -> None:
    accepted = http.post("/requests", json={"prompt": "x", "n": 3}).json()
    ids = accepted["choices"]
    assert ids == [accepted["request_id"], *(f"{accepted['request_id']}-{k}" for k in (1, 2))]
    assert take_all(writer, 3) == ids
    assert http.post(f"/requests/{ids[1]}/cancel").json()["state"] == "cancelled"
    for index in (0, 2):
        writer.append(ids[index], "a")
        writer.finish(ids[index])
    assert [http.get(f"/requests/{each}").json()["state"] for each in ids] == ["completed", "cancelled", "completed"]
    with following(http, f"/requests/{ids[2]}/events", **{"Last-Event-ID": "0-2"}) as events:
        assert [event.kind for event in events] == ["token", "completed"]


@pytest.mark.parametrize("stream", [True, False])
def test_a_keyed_repeat_gives_the_same_choices(
    writer: WakingWriter, redis: Redis, make_gateway: MakeGateway, stream: bool
) -> None:
    """At another gateway, after the first one was lost with its client."""
    body, headers = {**PROMPT, "n": 3, "stream": True}, {"Idempotency-Key": "k"}
    first, second = make_gateway(first_word_s=0, disconnect_grace_s=0.0), make_gateway(first_word_s=0)
    with first.client() as client, client.stream("POST", "/v1/completions", json=body, headers=headers) as response:
        assert response.status_code == 200
        ids = take_all(writer, 3)
        writer.append(ids[1], "one")
    first.stop()
    for index, rest in enumerate(("zero", " more", "two")):
        writer.append(ids[index], rest)
        writer.finish(ids[index])
    with second.client() as client:
        answer = client.post("/v1/completions", json={**body, "stream": stream}, headers=headers)
        other = client.post("/v1/completions", json={**body, "n": 2}, headers=headers)
    assert answer.headers["X-Request-Id"] == ids[0]
    said = {0: "", 1: "", 2: ""}
    parts = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
    for choice in (choice for part in (parts if stream else [answer.json()]) for choice in part["choices"]):
        said[choice["index"]] += choice["text"]
    assert said == {0: "zero", 1: "one more", 2: "two"}
    assert (other.status_code, other.json()["error"]["code"]) == (422, "idempotency_conflict")
    assert not redis.llen(keys.rq_queue(keys.queue("weather", "default")))


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_a_client_that_leaves_cancels_all(
    make_gateway: MakeGateway, writer: WakingWriter, redis: Redis, path: str, stream: bool
) -> None:
    gateway = make_gateway(disconnect_grace_s=0.0, first_word_s=0)
    body = {**(CHAT if "chat" in path else PROMPT), "n": 3, "stream": stream}
    with gateway.client() as client:
        if stream:
            with client.stream("POST", path, json=body):
                ids = take_all(writer, 3)
                wait_until(lambda: gateway.readers == 3)
        else:
            with pytest.raises(httpx.ReadTimeout):
                client.post(path, json=body, timeout=1)
            ids = [wait_until(writer.take) for _ in range(3)]
    wait_until(lambda: [redis.hget(keys.request(each), "state") for each in ids] == [b"cancelled"] * 3)
    assert {redis.hget(keys.request(each), "cancelled_by") for each in ids} == {b"disconnect"}


def test_a_gateway_that_stops_cancels_none(make_gateway: MakeGateway, writer: WakingWriter) -> None:
    gateway = make_gateway(disconnect_grace_s=0.0, first_word_s=0)
    with gateway.client() as client, client.stream("POST", "/v1/completions", json={**PROMPT, "n": 2, "stream": True}):
        ids = take_all(writer, 2)
        wait_until(lambda: gateway.readers == 2)
        gateway.stop()
    assert [writer.append(each, "It") for each in ids] == ["OK", "OK"]
    assert [writer.finish(each) for each in ids] == ["OK", "OK"]


def test_the_error_of_one_choice_comes_behind_the_others(make_gateway: MakeGateway, writer: WakingWriter) -> None:
    """Clients stop reading at an error: the other choices' tokens are sent first."""
    with streaming(make_gateway(first_word_s=0), "/v1/completions", {**PROMPT, "n": 3}) as events:
        ids = take_all(writer, 3)
        writer.append(ids[1], "a")
        writer.finish(ids[1], End("failed", "error", code="grammar_dead_end", message="no token may follow"))
        for index in (0, 2):
            writer.append(ids[index], "b")
            writer.finish(ids[index])
        *chunks, error, done = data(list(events))
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    assert sorted(choice["index"] for choice in choices if choice["text"]) == [0, 1, 2]
    assert sorted(choice["index"] for choice in choices if choice["finish_reason"]) == [0, 2]
    assert error["error"]["message"] == "choice 1: no token may follow"
    assert (error["error"]["type"], done) == ("invalid_request_error", "[DONE]")


def test_a_whole_answer_lacks_no_choice(make_gateway: MakeGateway, writer: WakingWriter, redis: Redis) -> None:
    """One that fails is the whole answer's error, and those that still run have no reader."""
    gateway = make_gateway(disconnect_grace_s=0.0)
    with gateway.client() as client, ThreadPoolExecutor(1) as threads:
        asked = threads.submit(client.post, "/v1/completions", json={**PROMPT, "n": 3})
        ids = take_all(writer, 3)
        writer.finish(ids[0])
        writer.finish(ids[1], End("failed", "error", code="internal_error", message="it broke"))
        answer = asked.result()
    assert (answer.status_code, answer.headers["X-Request-Id"]) == (500, ids[1])
    assert answer.json()["error"]["message"] == "choice 1: it broke"
    wait_until(lambda: redis.hget(keys.request(ids[2]), "state") == b"cancelled")


@pytest.mark.parametrize("stream", [True, False])
def test_a_failure_of_all_before_the_first_token_is_an_http_error(
    http: httpx.Client, redis_server: RedisServer, stream: bool
) -> None:
    def refuse(writer: Writer, request_id: str) -> None:
        writer.claim(request_id)
        writer.finish(request_id, End("failed", "error", code="invalid_grammar", message="no such grammar"))

    with serving(redis_server.url, refuse):
        answer = http.post("/v1/completions", json={**PROMPT, "n": 3, "stream": stream})
    assert (answer.status_code, answer.json()["error"]["message"]) == (400, "choice 0: no such grammar")


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/requests"])
@pytest.mark.parametrize("n", [0, -1, 17, 10**9])
def test_an_n_out_of_bounds_is_refused_by_name(
    http: httpx.Client, writer: WakingWriter, redis: Redis, path: str, n: int
) -> None:
    body = {"/requests": {"prompt": "x"}, "/v1/completions": PROMPT}.get(path, CHAT)
    answer = http.post(path, json={**body, "n": n})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "n")
    assert "from 1 to 16" in answer.json()["error"]["message"]
    assert not redis.keys("tokenrelay:{*")


def test_a_position_in_several_streams_is_refused(http: httpx.Client, writer: WakingWriter, redis: Redis) -> None:
    body = {**PROMPT, "n": 2, "stream": True}
    answer = http.post("/v1/completions", json=body, headers={"Last-Event-ID": "3-0"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "Last-Event-ID")
    assert not redis.keys("tokenrelay:{*")


def test_an_api_keys_limits_count_each_choice(make_gateway: MakeGateway, writer: WakingWriter, redis: Redis) -> None:
    """4 may be open: 3 get in, 2 more don't, 1 does, and 5 never would."""
    key = json.dumps([{"name": "alice", "sha256": hash_of("tr-alice"), "max_concurrent": 4}])
    gateway = make_gateway(api_keys=SecretStr(key))
    with gateway.client(Authorization="Bearer tr-alice") as alice:
        first = alice.post("/requests", json={"prompt": "x", "n": 3})
        refused = alice.post("/requests", json={"prompt": "x", "n": 2})
        never = alice.post("/v1/completions", json={**PROMPT, "n": 5})
        last = alice.post("/requests", json={"prompt": "x"})
    assert [answer.status_code for answer in (first, refused, never, last)] == [202, 429, 400, 202]
    assert (never.json()["error"]["param"], never.json()["error"]["limit"]) == ("n", 4)
    counted = {text(member) for member in redis.zrange(keys.of_owner("alice"), 0, -1)}
    assert counted == {*first.json()["choices"], last.json()["request_id"]}
