"""OpenAI's endpoints, called by the unmodified `openai` package."""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING, Any, Final

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletionChunk

from tests.gateway.events import following, parse
from tests.gateway.live import WakingWriter
from tests.waiting import wait_until
from tests.writers import serving
from tokenrelay.shared.wire import keys
from tokenrelay.shared.wire.entries import text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from redis import Redis

    from tests.gateway.conftest import MakeGateway
    from tests.gateway.live import LiveGateway
    from tests.redis_servers import RedisServer

ANSWER: Final = "It is sunny and warm."
ASKED: Final[list[Any]] = [{"role": "user", "content": "What is the weather today?"}]


@pytest.fixture
def client(gateway: LiveGateway) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


@pytest.fixture
def worker(redis_server: RedisServer, writer: WakingWriter) -> Iterator[None]:
    """A live worker that answers everything with the weather."""
    with serving(redis_server.url):
        yield


def test_comments_between_events_are_no_events(make_gateway: MakeGateway, writer: WakingWriter) -> None:
    """As in an answer that takes longer than TOKENRELAY_COMMENT_S: the package read an event without data from a
    comment, and raised a JSONDecodeError."""
    body = {"model": "weather", "messages": ASKED, "stream": True}
    with (
        make_gateway(first_word_s=0, comment_s=0.05).client() as client,
        client.stream("POST", "/v1/chat/completions", json=body) as response,
        openai.OpenAI(base_url="http://localhost/v1", api_key="none") as package,
    ):
        received, chunks = b"", response.iter_bytes()
        request_id = wait_until(writer.take)
        writer.claim(request_id)
        writer.append(request_id, "It is")
        while b"It is" not in received or b": waiting" not in received.partition(b"It is")[2]:
            received += next(chunks)
        writer.finish(request_id)
        received += b"".join(chunks)
        answer: Any = httpx.Response(200, content=received, request=response.request)
        read = list(openai.Stream(cast_to=ChatCompletionChunk, response=answer, client=package))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in read if chunk.choices) == "It is"


@pytest.mark.usefixtures("worker")
class TestChat:
    """POST /v1/chat/completions."""

    def test_whole(self, client: openai.OpenAI) -> None:
        answer = client.chat.completions.create(model="weather", messages=ASKED, temperature=0, seed=7, max_tokens=32)
        assert answer.choices[0].message.content == ANSWER
        assert answer.choices[0].finish_reason == "stop"
        assert answer.usage is not None
        assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (3, 6, 9)
        assert answer.id.startswith("chatcmpl-")
        assert answer.model == "weather"

    def test_streamed(self, client: openai.OpenAI) -> None:
        with client.chat.completions.create(
            model="weather", messages=ASKED, stream=True, stream_options={"include_usage": True}
        ) as stream:
            chunks = list(stream)
        assert chunks[0].choices[0].delta.role == "assistant"
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == ANSWER
        assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.completion_tokens == 6
        assert len({chunk.id for chunk in chunks}) == 1

    def test_the_package_s_own_accumulator_takes_it(self, client: openai.OpenAI) -> None:
        with client.chat.completions.stream(model="weather", messages=ASKED) as stream:
            assert stream.get_final_completion().choices[0].message.content == ANSWER

    def test_options_reach_the_request(self, client: openai.OpenAI, redis: Redis) -> None:
        client.chat.completions.create(
            model="weather",
            messages=[{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}],
            temperature=0.5,
            top_p=0.9,
            seed=3,
            stop=["x", "y"],
            max_completion_tokens=5,
            n=1,
            user="somebody",
            metadata={"a": "b"},
            extra_body={"top_k": 4},
        )
        (key,) = map(text, redis.keys("tokenrelay:{*}:request"))
        request: dict[str, Any] = {**WakingWriter(redis).request(key.split("{")[1].split("}")[0])}
        asked = {name: request[name] for name in ("temperature", "top_p", "seed", "stop", "max_new_tokens", "top_k")}
        assert asked == {
            "temperature": 0.5,
            "top_p": 0.9,
            "seed": 3,
            "stop": ["x", "y"],
            "max_new_tokens": 5,
            "top_k": 4,
        }
        assert request["messages"] == [{"role": "user", "content": "a\nb"}]
        assert request["metadata"]["a"] == "b"


@pytest.mark.usefixtures("worker")
class TestCompletions:
    """POST /v1/completions."""

    def test_whole(self, client: openai.OpenAI) -> None:
        answer = client.completions.create(model="weather", prompt="What is the weather today?")
        assert (answer.choices[0].text, answer.choices[0].finish_reason) == (ANSWER, "stop")

    def test_streamed(self, client: openai.OpenAI) -> None:
        with client.completions.create(model="weather", prompt="x", stream=True) as stream:
            assert "".join(chunk.choices[0].text for chunk in stream) == ANSWER


@pytest.mark.usefixtures("worker")
class TestResponses:
    """The Responses API."""

    def test_whole(self, client: openai.OpenAI) -> None:
        answer = client.responses.create(model="weather", input="What is the weather today?", instructions="Be brief.")
        assert (answer.output_text, answer.status) == (ANSWER, "completed")
        assert answer.instructions == "Be brief."
        assert answer.usage is not None
        assert answer.usage.output_tokens == 6
        again = client.responses.retrieve(answer.id)
        assert again == answer

    def test_streamed(self, client: openai.OpenAI) -> None:
        with client.responses.create(model="weather", input=ASKED, stream=True) as stream:
            events = list(stream)
        assert [event.sequence_number for event in events] == list(range(len(events)))
        assert [event.type for event in events] == [
            "response.created",
            "response.in_progress",
            "response.output_item.added",
            "response.content_part.added",
            *["response.output_text.delta"] * 6,
            "response.output_text.done",
            "response.content_part.done",
            "response.output_item.done",
            "response.completed",
        ]
        last: Any = events[-1]
        assert last.response.output_text == ANSWER

    def test_the_package_s_own_accumulator_takes_it(self, client: openai.OpenAI) -> None:
        with client.responses.stream(model="weather", input="x") as stream:
            for _ in stream:
                pass
            assert stream.get_final_response().output_text == ANSWER

    def test_background(self, client: openai.OpenAI) -> None:
        answer = client.responses.create(model="weather", input="x", background=True)
        assert answer.background
        wait_until(lambda: client.responses.retrieve(answer.id).status == "completed")
        with client.responses.retrieve(answer.id, stream=True, starting_after=8) as stream:
            events = list(stream)
        assert [event.sequence_number for event in events] == list(range(9, 14))

    def test_it_goes_on_at_another_gateway(self, client: openai.OpenAI, make_gateway: MakeGateway) -> None:
        with client.responses.create(model="weather", input="x", stream=True) as stream:
            events = list(stream)
        first: Any = events[0]
        with openai.OpenAI(base_url=f"{make_gateway().url}/v1", api_key="none") as other:
            for after in (0, 2, 5, 11):
                with other.responses.retrieve(first.response.id, stream=True, starting_after=after) as stream:
                    assert list(stream) == events[after + 1 :]


def test_a_hand_over_changes_no_sequence_number(
    client: openai.OpenAI, writer: WakingWriter, http: httpx.Client
) -> None:
    answer = client.responses.create(model="weather", input="x", background=True)
    request_id = writer.take()
    assert request_id is not None
    writer.claim(request_id)
    writer.append(request_id, "It", " is")
    with following(http, f"/v1/responses/{answer.id}?stream=true") as events:
        before = [next(events) for _ in range(6)]
        writer.release(request_id)
        other = WakingWriter(writer.redis, "other")
        other.claim(request_id)
        other.append(request_id, " sunny")
        other.finish(request_id)
        rest = list(events)
    numbers = [event.json["sequence_number"] for event in [*before, *rest]]
    assert numbers == list(range(len(numbers)))
    assert not [event for event in rest if "migrated" in event.data]
    with following(http, f"/v1/responses/{answer.id}?stream=true&starting_after=4") as events:
        assert [event.data for event in events] == [event.data for event in [*before, *rest][5:]]
    writer.redis.delete(keys.claimed(keys.queue("weather", "default")))


def test_last_event_id_never_skips_an_event(client: openai.OpenAI, writer: WakingWriter, http: httpx.Client) -> None:
    """The three events of `started` share an entry: a client that resumes after one of them gets the others."""
    answer = client.responses.create(model="weather", input="x", background=True)
    writer.answer(writer.take() or "")
    with following(http, f"/v1/responses/{answer.id}?stream=true") as events:
        everything = list(events)
    for number, event in enumerate(everything[:-1]):
        headers = {"Last-Event-ID": event.last_id}
        with following(http, f"/v1/responses/{answer.id}?stream=true", **headers) as events:
            rest = [each.data for each in events]
        assert rest == [each.data for each in everything[len(everything) - len(rest) :]]
        assert len(rest) >= len(everything) - number - 1


def test_models_are_those_of_live_workers(client: openai.OpenAI, writer: WakingWriter, redis: Redis) -> None:
    WakingWriter(redis, "hub", "owner/name").appear()
    assert [model.id for model in client.models.list()] == ["owner/name", "weather"]
    assert client.models.retrieve("owner/name").id == "owner/name"
    redis.pexpire(keys.rq_worker("hub"), 5000)  # it hasn't beaten for seconds
    assert [model.id for model in client.models.list()] == ["weather"]
    with pytest.raises(openai.NotFoundError, match="owner/name"):
        client.models.retrieve("owner/name")


UNSUPPORTED: Final = [
    ("tool_choice", "required"),
    ("best_of", 2),
    ("functions", [{"name": "f"}]),
    ("modalities", ["audio"]),
    ("add_generation_prompt", False),
]


def test_more_prompts_than_one_call_may_have_are_refused(client: openai.OpenAI, redis: Redis) -> None:
    with pytest.raises(openai.BadRequestError, match="257 prompts; at most 256 in all") as refused:
        client.completions.create(model="weather", prompt=["a"] * 257)
    assert refused.value.param == "prompt"
    assert not redis.keys("tokenrelay:{*")


@pytest.mark.parametrize(("name", "value"), UNSUPPORTED)
def test_what_we_do_not_do_is_refused_by_name(client: openai.OpenAI, redis: Redis, name: str, value: Any) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="weather", messages=ASKED, extra_body={name: value})
    assert refused.value.param == name
    assert name in refused.value.message
    assert not redis.keys("tokenrelay:{*")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages"),
        ({"messages": [{"role": "user", "content": None}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_completion_tokens": 0}, "max_completion_tokens"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens"),
        ({"stop": [3]}, "stop.0"),
        ({"stop": 3}, "stop"),
        ({"stream": "yes"}, "stream"),
        ({"seed": 2**63}, "seed"),
        ({"metadata": {"tokenrelay.gateway": {"fleeting": True}}}, "metadata"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages.0.content"),
    ],
)
def test_bad_input_is_named(http: httpx.Client, writer: WakingWriter, body: dict[str, Any], param: str) -> None:
    content = json.dumps({"model": "weather", "messages": ASKED, **body})
    answer = http.post("/v1/chat/completions", content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["param"].startswith(param)
    assert error["type"] == "invalid_request_error"


def test_a_model_that_nobody_serves(client: openai.OpenAI, writer: WakingWriter) -> None:
    with pytest.raises(openai.NotFoundError) as refused:
        client.chat.completions.create(model="other", messages=ASKED)
    assert refused.value.code == "model_not_found"


def test_an_idempotency_key_attaches_to_the_running_stream(writer: WakingWriter, make_gateway: MakeGateway) -> None:
    """A chat with a broken connection is repeated at any gateway, and resumes after the client's last event."""
    http = make_gateway(first_word_s=0).client()
    body = {"model": "weather", "messages": ASKED, "stream": True}
    headers = {"Idempotency-Key": "chat-1"}
    with http, http.stream("POST", "/v1/chat/completions", json=body, headers=headers) as response:
        assert response.status_code == 200
        request_id = writer.take() or ""
        writer.claim(request_id)
        writer.append(request_id, "It", " is")
    done = threading.Timer(0, lambda: (writer.append(request_id, " sunny"), writer.finish(request_id)))
    with make_gateway().client() as other:
        done.start()
        answer = other.post("/v1/chat/completions", json=body, headers={**headers, "Last-Event-ID": "1-0"})
    done.join()
    chunks = [event.json for event in parse(answer.text) if event.data != "[DONE]"]
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == " is sunny"
    assert answer.text.endswith("id: 3-1\ndata: [DONE]\n\n")
