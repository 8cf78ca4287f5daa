"""Tools from a caller to the stream: rendered, called under a grammar, parsed, the same across workers and readers."""

from __future__ import annotations

import json
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import pytest
from openai import BadRequestError, OpenAI
from transformers import AutoTokenizer

from tests.gateway.live import LiveGateway
from tests.grammars import save_tiny_model
from tests.structured import MODEL, tiny_worker
from tests.unit.test_chat_template import QWEN
from tests.waiting import wait_until
from tokenrelay.producer import (
    AsyncProducer,
    CallArguments,
    CallBegin,
    CallEnd,
    GenerationFailed,
    Producer,
    RequestError,
)
from tokenrelay.shared.answers.deltas import call_id, message_of
from tokenrelay.shared.wire import keys

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from redis import Redis

    from tests.redis_servers import RedisServer
    from tokenrelay.shared.wire.answer import Answer

TOOLS: Final[list[Any]] = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The weather of a city.",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string", "maxLength": 12}, "days": {"type": "integer", "maximum": 99}},
                "required": ["city", "days"],
                "additionalProperties": False,
            },
        },
    },
    {"name": "get_time", "parameters": {"type": "object", "properties": {}, "additionalProperties": False}},
]
ASKED: Final[list[Any]] = [{"role": "user", "content": "Hi"}]
PLAIN: Final[dict[str, Any]] = {
    "model": MODEL, "messages": ASKED, "tools": TOOLS, "temperature": 1.5, "max_new_tokens": 150, "seed": 5,
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with random weights, whose chat template shows tools as Qwen's."""
    folder = tmp_path_factory.mktemp("model") / MODEL
    save_tiny_model(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = QWEN
    tokenizer.save_pretrained(folder)
    return folder


@contextmanager
def live(redis_server: RedisServer) -> Iterator[LiveGateway]:
    gateway = LiveGateway(redis_server.url)
    try:
        yield gateway
    finally:
        gateway.stop()


def calls(answer: Answer) -> list[tuple[str, str]]:
    return [(call.name, call.arguments) for call in answer.said.tool_calls]


def started_fields(redis: Redis, request_id: str) -> dict[bytes, bytes]:
    entries: list[Any] = list(redis.xrange(keys.stream(request_id)) or [])
    return next(fields for _, fields in entries if fields.get(b"event") == b"started")


def check_arguments(answer: Answer) -> None:
    """Each call is of an offered tool, and its arguments fit its schema, unless the answer was cut off within."""
    assert answer.finish_reason in ("stop", "length")
    for number, call in enumerate(answer.said.tool_calls):
        if answer.finish_reason == "length" and number == len(answer.said.tool_calls) - 1:
            return
        arguments = json.loads(call.arguments)
        if call.name == "get_time":
            assert arguments == {}
        else:
            assert call.name == "get_weather"
            assert arguments.keys() == {"city", "days"}


def test_the_worker_is_replaced_within_a_call_and_the_call_is_the_same(redis_server: RedisServer, folder: Path) -> None:
    """required, a named function and auto with a strict tool, at temperature 1.5, handed over in the middle: tokens,
    deltas, arguments and call IDs as of the same stream read undisturbed."""
    strict = [{**TOOLS[0]["function"], "strict": True}, TOOLS[1]]
    kinds: dict[str, dict[str, Any]] = {
        "required": {"tool_choice": "required"},
        "single": {"tool_choice": "required", "parallel_tool_calls": False},
        "named": {"tool_choice": {"type": "function", "function": {"name": "get_weather"}}},
        "auto": {"tools": strict},
    }
    requests = {f"{kind}{seed}": {**PLAIN, **kinds[kind], "seed": seed} for kind in kinds for seed in range(3)}
    with Producer(url=redis_server.url) as producer:
        with tiny_worker(redis_server.url, folder, drain_timeout_s=0.1) as first:
            cut = {name: producer.submit(**chosen) for name, chosen in requests.items()}
            wait_until(lambda: sum(generation.status().tokens > 20 for generation in cut.values()) > 8)
            first.stop()
            first.stop()
        with tiny_worker(redis_server.url, folder):
            resumed = {name: generation.result() for name, generation in cut.items()}
            whole = {name: producer.submit(**chosen).result() for name, chosen in requests.items()}
        assert sum(answer.attempts == 2 for answer in resumed.values()) >= 4
        for name, answer in resumed.items():
            assert [token.token_id for token in answer.tokens] == [token.token_id for token in whole[name].tokens]
            without_ids = [
                [(call.name, call.arguments) for call in each.said.tool_calls] for each in (answer, whole[name])
            ]
            assert without_ids[0] == without_ids[1]
            check_arguments(answer)
            if not name.startswith("auto"):
                assert answer.said.content == ""
                assert len(answer.said.tool_calls) >= 1
            if name.startswith(("single", "named")):
                assert len(answer.said.tool_calls) == 1
            # Any reader, from any token on, sees the same deltas with the same IDs.
            generation = producer.get(answer.request_id)
            deltas = list(generation.deltas())
            assert message_of(deltas) == answer.said == generation.message()
            assert len({call.call_id for call in answer.said.tool_calls}) == len(answer.said.tool_calls)
            behind = len(answer.tokens) // 2
            later = list(generation.deltas(after=behind))
            assert later == deltas[len(deltas) - len(later) :]
    named = resumed["named0"].said.tool_calls[0]
    assert named.call_id == call_id(resumed["named0"].request_id, 1)


def test_a_stream_says_its_format_and_streams_arguments_in_parts(
    redis_server: RedisServer, folder: Path, redis: Redis
) -> None:
    with tiny_worker(redis_server.url, folder), Producer(url=redis_server.url) as producer:
        generation = producer.submit(**PLAIN, tool_choice={"name": "get_weather"})
        kinds = [type(delta) for delta in generation.deltas()]
        assert kinds[0] is CallBegin
        assert kinds[-1] is CallEnd
        assert kinds.count(CallArguments) > 3
        started = started_fields(redis, generation.request_id)
        assert started[b"tool_parser"] == b"hermes"
        assert b"marks" not in started  # its markers are no special tokens
        assert json.loads(redis.hget(keys.request(generation.request_id), "effective") or "")["tool_parser"] == "hermes"
        # Without tools to call a stream is what it was.
        plain = producer.submit(model=MODEL, messages=ASKED, max_new_tokens=3)
        assert plain.message().content == plain.result().text
        assert b"tool_parser" not in started_fields(redis, plain.request_id)


def test_a_conversation_goes_on_with_a_tools_result(redis_server: RedisServer, folder: Path) -> None:
    with tiny_worker(redis_server.url, folder), Producer(url=redis_server.url) as producer:
        said = producer.submit(**PLAIN, tool_choice={"name": "get_weather"}).message()
        (call,) = said.tool_calls
        result = {"role": "tool", "tool_call_id": call.call_id, "content": "sunny"}
        conversation: list[Any] = [*ASKED, said.as_message(), result]
        answer = producer.submit(
            **{**PLAIN, "messages": conversation, "tool_choice": "none", "max_new_tokens": 5}
        ).result()
        assert answer.said.tool_calls == ()
        with pytest.raises(RequestError, match=r"messages\.1\.tool_call_id: no earlier message has the call"):
            producer.submit(**{**PLAIN, "messages": [ASKED[0], result]})


def test_tools_that_cannot_be_compiled_fail_before_the_first_token(redis_server: RedisServer, folder: Path) -> None:
    odd = {"name": "f", "strict": True, "parameters": {"type": "object", "dependentSchemas": {"a": {"not": {}}}}}
    with tiny_worker(redis_server.url, folder), Producer(url=redis_server.url) as producer:
        with pytest.raises(GenerationFailed, match="tools: ") as failed:
            producer.submit(**{**PLAIN, "tools": [odd]}).result()
        assert failed.value.code == "invalid_grammar"


@pytest.mark.anyio
async def test_asyncio_handles_read_calls_too(redis_server: RedisServer, folder: Path) -> None:
    with tiny_worker(redis_server.url, folder):
        async with AsyncProducer(url=redis_server.url) as producer:
            generation = await producer.submit(**PLAIN, tool_choice={"name": "get_weather"})
            deltas = [delta async for delta in generation.deltas()]
            assert message_of(deltas) == await generation.message()
            assert (await generation.message()).tool_calls[0].name == "get_weather"


def test_openais_client_calls_tools_streamed_and_whole(redis_server: RedisServer, folder: Path) -> None:
    """The calls, IDs and arguments of a stream are those of the whole answer under the same key, at two gateways."""
    asked: dict[str, Any] = {
        "model": MODEL, "messages": ASKED, "tools": [TOOLS[0], {"type": "function", "function": TOOLS[1]}],
        "max_tokens": 150, "temperature": 1.5,
    }  # fmt: skip
    with (
        tiny_worker(redis_server.url, folder),
        live(redis_server) as first,
        live(redis_server) as second,
    ):
        clients = [OpenAI(base_url=f"{each.url}/v1", api_key="none", max_retries=0) for each in (first, second)]
        assert "tools" in clients[0].models.retrieve(MODEL).capabilities  # type: ignore[attr-defined]
        for seed, choice in enumerate(("required", {"type": "function", "function": {"name": "get_weather"}})):
            keyed: dict[str, Any] = {
                **asked, "tool_choice": choice, "seed": seed, "extra_headers": {"Idempotency-Key": f"key{seed}"},
            }  # fmt: skip
            whole = clients[0].chat.completions.create(**keyed).choices[0]
            chunks = [chunk.choices[0] for chunk in clients[1].chat.completions.create(**keyed, stream=True)]
            streamed: dict[int, dict[str, str]] = {}
            for call in [call for chunk in chunks for call in chunk.delta.tool_calls or ()]:
                built = streamed.setdefault(call.index, {"id": "", "name": "", "arguments": ""})
                built["id"] += call.id or ""
                built["name"] += (call.function.name if call.function else "") or ""
                built["arguments"] += (call.function.arguments if call.function else "") or ""
            found = [
                {"id": call.id, "name": call.function.name, "arguments": call.function.arguments}
                for call in whole.message.tool_calls or ()
            ]
            assert found
            assert list(streamed.values()) == found
            assert whole.message.content is None
            assert whole.finish_reason == chunks[-1].finish_reason
            assert whole.finish_reason in ("tool_calls", "length")
            assert not any(chunk.delta.content for chunk in chunks)


def test_a_tool_round_trip_by_openais_client(redis_server: RedisServer, folder: Path) -> None:
    tool = {"type": "function", "function": {**TOOLS[1], "strict": True}}
    conversation: list[Any] = list(ASKED)
    with tiny_worker(redis_server.url, folder), live(redis_server) as gateway:
        client = OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0)
        asked: dict[str, Any] = {"model": MODEL, "tools": [tool], "max_tokens": 80}
        forced: dict[str, Any] = {"tool_choice": "required", "parallel_tool_calls": False}
        answer = client.chat.completions.create(messages=conversation, **asked, **forced).choices[0]
        assert answer.finish_reason == "tool_calls"
        call: Any = (answer.message.tool_calls or [None])[0]
        result = {"role": "tool", "tool_call_id": call.id, "content": "noon"}
        conversation += [answer.message.model_dump(exclude_none=True), result]
        assert (
            client.chat.completions.create(messages=conversation, **asked, tool_choice="none")
            .choices[0]
            .message.content
        )
        refused: list[tuple[dict[str, Any], str]] = [
            ({"tools": [tool, tool]}, "tools"),
            ({"tools": [{"type": "web_search"}]}, "tools.0.type"),
            ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools.0.name"),
            ({"tool_choice": {"type": "function", "function": {"name": "g"}}}, "tool_choice"),
            ({"tools": [], "tool_choice": "required"}, "tool_choice"),
            ({"response_format": {"type": "json_object"}}, "response_format"),
            ({"messages": [*ASKED, {**result, "tool_call_id": "call_0"}]}, "messages.1.tool_call_id"),
            ({"tools": [{"type": "function", "function": {"name": "f", "strict": True, "parameters": {
                "type": "object", "dependentSchemas": {"a": {}}}}}]}, "tools"),
        ]  # fmt: skip
        for body, param in refused:
            whole: dict[str, Any] = {"messages": ASKED, **asked, **body}
            with pytest.raises(BadRequestError) as caught:
                client.chat.completions.create(**whole)
            assert caught.value.param == param


def test_a_model_without_tools_refuses_them(redis_server: RedisServer, tmp_path: Path) -> None:
    folder = tmp_path / MODEL
    save_tiny_model(folder)
    with tiny_worker(redis_server.url, folder), live(redis_server) as gateway:
        client = OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0)
        with pytest.raises(BadRequestError, match="tools") as caught:
            client.chat.completions.create(model=MODEL, messages=ASKED, tools=[TOOLS[0]])
        assert caught.value.param == "tools"
