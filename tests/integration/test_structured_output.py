"""Structured output from a caller to the stream: in Python, on the command line and over HTTP, across workers."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest
from openai import OpenAI

from tests.engines import CountingEngine
from tests.gateway.live import LiveGateway
from tests.grammars import save_tiny_model
from tests.structured import MODEL, PLAIN, Weather, tiny_worker, was_refused
from tests.waiting import wait_until
from tests.workers import running_worker
from tokenrelay.cli.__main__ import main
from tokenrelay.producer import AsyncProducer, GenerationError, GenerationFailed, Producer
from tokenrelay.shared.wire import keys
from tokenrelay.shared.wire.entries import State

if TYPE_CHECKING:
    from pathlib import Path

    from redis import Redis

    from tests.redis_servers import RedisServer
    from tokenrelay.shared.wire.answer import Answer

FORMATS: dict[str, Any] = {
    "model": Weather,
    "json_object": {"type": "json_object"},
    "regex": {"type": "regex", "value": r"[世界🌍ü]{30,60}( [a-z]{9,12}){3}\."},
    "choice": {"type": "choice", "value": [f"Grüße from the {word} place, where it is warm." for word in "abcdef"]},
    "lark": {"type": "lark", "value": 'start: item ("," item)~20..30\nitem: /[a-zü]{2,8}/ | "(" item ")"'},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / MODEL
    save_tiny_model(folder)
    return folder


def tokens(answer: Answer) -> list[tuple[str, int]]:
    return [(token.text, token.token_id) for token in answer.tokens]


def check(name: str, text: str) -> None:
    if name == "model":
        Weather.model_validate_json(text)
    elif name == "json_object":
        assert isinstance(json.loads(text), dict)
    elif name == "choice":
        assert text in FORMATS[name]["value"]
    else:
        pattern = FORMATS[name]["value"] if name == "regex" else r"[a-zü,()]+"
        assert re.fullmatch(pattern, text), text


def test_answers_match_whole_and_taken_over(redis_server: RedisServer, folder: Path) -> None:
    """Three of each kind at temperature 3, handed over in the middle: the same tokens as undisturbed, in float64."""
    requests = {f"{name}{seed}": {**PLAIN, "response_format": FORMATS[name], "seed": seed}
                for name in FORMATS for seed in range(3)}  # fmt: skip
    with Producer(url=redis_server.url) as producer:
        with tiny_worker(redis_server.url, folder, drain_timeout_s=0.1) as first:
            cut = {name: producer.submit("Hi", **chosen) for name, chosen in requests.items()}
            wait_until(lambda: sum(generation.status().tokens > 3 for generation in cut.values()) > 10)
            first.stop()
            first.stop()
        with tiny_worker(redis_server.url, folder):
            resumed = {name: generation.result() for name, generation in cut.items()}
            whole = {name: producer.submit("Hi", **chosen).result() for name, chosen in requests.items()}
    assert sum(answer.attempts == 2 for answer in resumed.values()) >= 5
    for name, answer in whole.items():
        assert tokens(resumed[name]) == tokens(answer), name
        assert (resumed[name].text, resumed[name].finish_reason) == (answer.text, answer.finish_reason)
        if answer.finish_reason == "stop":
            check(name.rstrip("012"), answer.text)
        else:
            assert (answer.state, answer.finish_reason) == (State.INCOMPLETE, "length")
            assert answer.usage.completion_tokens == PLAIN["max_new_tokens"]
    complete = {name.rstrip("012") for name, answer in whole.items() if answer.finish_reason == "stop"}
    assert complete >= {"model", "regex", "choice", "lark"}


def test_a_pydantic_models_instance_is_the_answer(redis_server: RedisServer, folder: Path) -> None:
    with tiny_worker(redis_server.url, folder), Producer(url=redis_server.url) as producer:
        generation = producer.submit("Hi", response_format=Weather, **PLAIN)
        weather = generation.parsed()
        assert isinstance(weather, Weather)
        assert producer.get(generation.request_id).parsed() == weather.model_dump()
        assert producer.get(generation.request_id).parsed(Weather) == weather
        (many,) = producer.submit_many(["Hi"], response_format=Weather, **PLAIN)
        assert isinstance(many.parsed(), Weather)
        cut_off = producer.submit("Hi", response_format=Weather, **{**PLAIN, "max_new_tokens": 5})
        with pytest.raises(GenerationError, match=r"isn't a Weather .* ended as length") as unparsed:
            cut_off.parsed()
        assert unparsed.value.text == cut_off.result().text


@pytest.mark.anyio
async def test_an_asyncio_handle_parses_too(redis_server: RedisServer, folder: Path) -> None:
    with tiny_worker(redis_server.url, folder):
        async with AsyncProducer(url=redis_server.url) as producer:
            generation = await producer.submit("Hi", response_format=Weather, **PLAIN)
            assert isinstance(await generation.parsed(), Weather)


def test_a_grammar_that_cannot_be_compiled_fails_before_the_first_token(
    redis_server: RedisServer, folder: Path
) -> None:
    """A 400 over HTTP, with the compiler's reason. Hostile ones too, and the requests beside them are served."""
    hostile = {"allOf": [{"type": "integer", "multipleOf": each} for each in (3, 7, 11, 13, 17, 19, 23)]}
    with tiny_worker(redis_server.url, folder), Producer(url=redis_server.url) as producer:
        beside = producer.submit("Hi", **PLAIN)
        for form, reason in (
            ({"type": "regex", "value": "(a"}, "unclosed group|regex"),
            ({"type": "lark", "value": "start: nothing"}, "nothing"),
            ({"type": "json_schema", "value": json.dumps(hostile)}, "too complex"),
        ):
            generation = producer.submit("Hi", response_format=form, **PLAIN)  # type: ignore[arg-type]
            with pytest.raises(GenerationFailed, match=reason) as failed:
                generation.result()
            assert (failed.value.code, failed.value.answer.tokens) == ("invalid_grammar", ())
        assert len(beside.result().tokens) > 0
        gateway = LiveGateway(redis_server.url)
        try:
            with gateway.client() as http:
                body = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}]}
                refusal = http.post("/v1/chat/completions", json={**body, "structured_outputs": {"regex": "(a"}})
                early = http.post(
                    "/v1/chat/completions",
                    json={**body, "structured_outputs": {"json": {"$ref": "https://example.com/a.json"}}},
                )
        finally:
            gateway.stop()
    refused = refusal.json()["error"]
    assert (refusal.status_code, refused["code"], refused["param"]) == (400, "invalid_grammar", "response_format")
    assert (early.status_code, early.json()["error"]["param"]) == (400, "structured_outputs")
    assert "another document" in early.json()["error"]["message"]


def test_openais_clients_parse(redis_server: RedisServer, folder: Path) -> None:
    gateway = LiveGateway(redis_server.url)
    try:
        with tiny_worker(redis_server.url, folder), OpenAI(base_url=f"{gateway.url}/v1", api_key="none") as client:
            message = {"role": "user", "content": "Hi"}
            chat = client.chat.completions.parse(
                model=MODEL, messages=[message], response_format=Weather, temperature=2.0  # type: ignore[list-item]
            )  # fmt: skip
            assert isinstance(chat.choices[0].message.parsed, Weather)
            response = client.responses.parse(model=MODEL, input="Hi", text_format=Weather, temperature=2.0)
            assert isinstance(response.output_parsed, Weather)
            assert response.text is not None
            assert response.text.format is not None
            assert response.text.format.type == "json_schema"
            assert response.text.format.name == "Weather"
            assert client.responses.retrieve(response.id).text == response.text
            with client.responses.retrieve(response.id, stream=True) as events:
                shown = [
                    each.response.text for each in events if each.type in ("response.created", "response.completed")
                ]
            assert shown == [response.text, response.text]
            completion = client.completions.create(
                model=MODEL, prompt="Hi", extra_body={"structured_outputs": {"choice": ["yes", "no"]}}
            )
            assert completion.choices[0].text in ("yes", "no")
    finally:
        gateway.stop()


def test_the_command_line_takes_a_schema_a_pattern_and_choices(
    redis_server: RedisServer, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("TOKENRELAY_REDIS_URL", redis_server.url)
    schema = tmp_path / "schema.json"
    schema.write_text(json.dumps(Weather.model_json_schema()), "utf-8")

    def ask(*flags: str) -> tuple[int, str, str]:
        arguments = ["ask", "Hi", "--model", MODEL, "--temperature", "3", *flags]
        monkeypatch.setattr("sys.argv", ["tokenrelay", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        shown = capsys.readouterr()
        return int(ended.value.code or 0), shown.out.strip(), shown.err

    with tiny_worker(redis_server.url, folder):
        Weather.model_validate_json(ask("--schema", str(schema))[1])
        assert re.fullmatch("[0-9]{4}", ask("--regex", "[0-9]{4}")[1])
        assert ask("--choice", "yes", "--choice", "no")[1] in ("yes", "no")
        code, text, errors = ask("--schema", str(schema), "--max-new-tokens", "5")
        assert (code, text[:1]) == (1, "{")
        assert "cut off and doesn't match its format; --max-new-tokens gives it more room" in errors
    code, _, errors = ask("--choice", "yes", "--regex", "a")
    assert (code, "give one of them" in errors) == (2, True)
    code, _, errors = ask("--schema", str(tmp_path / "none.json"))
    assert (code, "can't be read" in errors) == (2, True)


def test_a_worker_that_cannot_leaves_it_to_others(redis_server: RedisServer, redis: Redis) -> None:
    """A tokenizer of words has no bytes to mask: the gateway refuses, and a worker gives the request back."""
    form: Any = {"type": "json_object"}
    gateway = LiveGateway(redis_server.url)
    try:
        with running_worker(redis_server.url, CountingEngine(vocabulary=1000)), gateway.client() as http:
            body = {"model": "counting", "prompt": "w1 w2", "max_new_tokens": 4}
            refusal = http.post("/v1/completions", json={**body, "response_format": form})
            with Producer(url=redis_server.url) as producer:
                generation = producer.submit("w1 w2", model="counting", response_format=form)
                job = keys.rq_job(generation.request_id)
                wait_until(lambda: was_refused(redis, job))
                assert generation.status().state is State.QUEUED
                generation.cancel()
    finally:
        gateway.stop()
    assert (refusal.status_code, refusal.json()["error"]["param"]) == (400, "response_format")


def test_another_version_of_the_library_gives_the_request_back(
    redis_server: RedisServer, redis: Redis, folder: Path
) -> None:
    with Producer(url=redis_server.url) as producer:
        with tiny_worker(redis_server.url, folder, drain_timeout_s=0.0) as first:
            generation = producer.submit("Hi", response_format=Weather, **PLAIN)
            wait_until(lambda: generation.status().tokens > 3)
            first.stop()
            first.stop()
        hash_key = keys.request(generation.request_id)
        effective = json.loads(redis.hget(hash_key, "effective"))  # type: ignore[arg-type]
        assert effective["grammar"]["library"] == "llguidance"
        redis.hset(
            hash_key, "effective", json.dumps({**effective, "grammar": {"library": "llguidance", "version": "0"}})
        )
        with tiny_worker(redis_server.url, folder):
            job = keys.rq_job(generation.request_id)
            wait_until(lambda: was_refused(redis, job))
            assert generation.status().state is State.IN_PROGRESS
            generation.cancel()
