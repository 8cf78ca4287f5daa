"""The draw's options from a caller to the stream: in Python and over HTTP, on the bundled model, across workers."""

from __future__ import annotations

import json
import re
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import pytest

from tests.gateway.live import LiveGateway
from tests.waiting import wait_until
from tests.workers import running_model
from tokenrelay.producer import GenerationFailed, Producer
from tokenrelay.shared.options import VERSION_2
from tokenrelay.shared.wire import keys
from tokenrelay.shared.wire.entries import State

if TYPE_CHECKING:
    from collections.abc import Iterator

    from redis import Redis

    from tests.redis_servers import RedisServer
    from tokenrelay.producer import Generation
    from tokenrelay.shared.wire.answer import Answer
    from tokenrelay.worker.worker import Worker

pytestmark = pytest.mark.timeout(300)
PROMPT: Final = "What is the weather like in the north today?"
PLAIN: Final[dict[str, Any]] = {"temperature": 3.0, "max_new_tokens": 600, "seed": 14, "ignore_eos": True}
"""Nearly every token is a surprise at this temperature, so that a wrong one can't be drawn by chance."""


@contextmanager
def weather_worker(url: str) -> Iterator[Worker]:
    """The bundled model in float64, where a continuation is exact."""
    with running_model(url, device="cpu", dtype="float64", slots=16, drain_timeout_s=0) as worker:
        yield worker


def asked(plain: Answer) -> dict[str, dict[str, Any]]:
    """A request for each option; the ends come late in the answer that has none of them."""
    ids = [token.token_id for token in plain.tokens]
    # Tokens that are words: others may be bytes of a character, or blanks.
    words = [index for index, token in enumerate(plain.tokens) if re.fullmatch(" [A-Za-z]{4,}", token.text)]
    late = max(index for index in words if plain.tokens[index].text not in text_before(plain, index))
    end, word = ids[late], plain.tokens[late].text
    often = max(set(ids), key=ids.count)
    return {
        "logit_bias": {"logit_bias": {str(often): -100, str(end): 2.5}},
        "repetition_penalty": {"repetition_penalty": 1.5},
        "frequency_penalty": {"frequency_penalty": 1.5},
        "presence_penalty": {"presence_penalty": -2.0},
        "bad_words": {"bad_words": [plain.tokens[words[0]].text.strip(), "It is"]},
        "min_tokens": {"min_tokens": 500, "ignore_eos": False},
        "min_p": {"min_p": 0.02},
        "stop_token_ids": {"stop_token_ids": [end]},
        "include_stop_str_in_output": {"stop": [word], "include_stop_str_in_output": True},
        "all": {
            "logit_bias": {str(often): -3},
            "repetition_penalty": 1.1,
            "frequency_penalty": 0.2,
            "presence_penalty": 0.1,
            "bad_words": [plain.tokens[words[0]].text.strip()],
            "min_tokens": 550,
            "min_p": 0.001,
            "stop_token_ids": [end],
            "stop": [word],
            "include_stop_str_in_output": True,
            "ignore_eos": False,
        },
    }


def text_before(answer: Answer, index: int) -> str:
    return "".join(token.text for token in answer.tokens[:index])


BEYOND: Final = 2**31 - 1
"""A token ID that no model has."""


def tokens(answer: Answer) -> list[tuple[int, str]]:
    return [(token.token_id, token.text) for token in answer.tokens]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_each_option_comes_out_the_same_wherever_it_was_asked_and_handed_over(redis_server: RedisServer) -> None:
    """Ten requests share the batch of one worker, which hands them back mid-stream; another one goes on.

    Each option changes the answer, and the answer of both workers together is that of one; so is that over HTTP.
    """
    with Producer(url=redis_server.url) as producer:

        def submit(**chosen: Any) -> Generation:
            return producer.submit(PROMPT, **{**PLAIN, **chosen})

        with weather_worker(redis_server.url) as first:
            plain = submit().result()
            requests = asked(plain)
            cut = {name: submit(**chosen) for name, chosen in requests.items()}
            wait_until(lambda: all(generation.status().tokens > 5 for generation in cut.values()))
            first.stop()
            first.stop()
        at = {name: generation.status() for name, generation in cut.items()}
        assert all(status.state is State.IN_PROGRESS for status in at.values()), at
        gateway = LiveGateway(redis_server.url)
        try:
            with weather_worker(redis_server.url), gateway.client() as http:
                resumed = {name: generation.result() for name, generation in cut.items()}
                whole = {name: submit(**chosen).result() for name, chosen in requests.items()}
                unlike = {
                    name: submit(**{"ignore_eos": chosen.get("ignore_eos", True)}) for name, chosen in requests.items()
                }
                without = {name: generation.result() for name, generation in unlike.items()}
                posted = {
                    name: http.post(
                        "/v1/completions", timeout=60, json={"model": "weather", "prompt": PROMPT, **PLAIN, **chosen}
                    )
                    for name, chosen in requests.items()
                }
        finally:
            gateway.stop()
    for name in requests:
        assert resumed[name].attempts == 2, name
        assert tokens(resumed[name]) == tokens(whole[name]), name
        assert (resumed[name].text, resumed[name].finish_reason) == (whole[name].text, whole[name].finish_reason), name
        assert whole[name].text != without[name].text, name
        assert posted[name].status_code == 200, posted[name].text
        assert posted[name].json()["choices"][0]["text"] == whole[name].text, name
    check_ends(plain, requests, whole)


def check_ends(plain: Answer, requests: dict[str, dict[str, Any]], whole: dict[str, Answer]) -> None:
    """Where each of the ends fell."""
    (end,) = requests["stop_token_ids"]["stop_token_ids"]
    ids = [token.token_id for token in plain.tokens]
    assert tokens(whole["stop_token_ids"]) == tokens(plain)[: ids.index(end)]
    (word,) = requests["include_stop_str_in_output"]["stop"]
    assert whole["include_stop_str_in_output"].text == plain.text[: plain.text.index(word) + len(word)]
    assert whole["min_tokens"].usage.completion_tokens >= 500
    assert whole["all"].usage.completion_tokens >= 550
    for name in ("stop_token_ids", "include_stop_str_in_output"):
        assert (whole[name].state, whole[name].finish_reason) == (State.COMPLETED, "stop")
    banned = requests["bad_words"]["bad_words"][0]
    assert banned in plain.text
    assert banned not in whole["bad_words"].text.split()


ALL: Final[dict[str, Any]] = {
    "logit_bias": {"5": 1.5},
    "repetition_penalty": 1.1,
    "frequency_penalty": 0.2,
    "presence_penalty": 0.1,
    "bad_words": ["sunny"],
    "min_tokens": 3,
    "min_p": 0.25,
    "stop_token_ids": [9],
    "include_stop_str_in_output": True,
    "response_format": {"type": "choice", "value": ["yes", "no"], "strict": True},
}


ELSEWHERE: Final = frozenset({
    "prompt_token_ids", "continue_final_message", "chat_template_kwargs", "tools", "tool_choice", "parallel_tool_calls",
    "logprobs", "top_logprobs", "prompt_logprobs", "echo",
})  # fmt: skip
"""Options of version 2 that not every endpoint has, or not in the same shape: each has tests of its own."""


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/requests", {"prompt": "hi"}),
        ("/v1/completions", {"prompt": "hi"}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}]}),
        ("/v1/responses", {"input": "hi", "background": True}),
    ],
)
def test_every_endpoint_stores_every_option(
    redis_server: RedisServer, redis: Redis, path: str, body: dict[str, Any]
) -> None:
    assert ALL.keys() == VERSION_2.keys() - ELSEWHERE
    gateway = LiveGateway(redis_server.url)
    try:
        with gateway.client() as http:
            sent = {"model": "weather", "max_new_tokens": 4, "deadline_s": 0.3, **body, **ALL}
            answer = http.post(path, json=sent)
        request_id = answer.headers.get("X-Request-Id") or answer.json()["request_id"]
    finally:
        gateway.stop()
    raw: Any = redis.hget(keys.request(request_id), "request")
    stored = json.loads(raw)
    assert {name: stored[name] for name in ALL} == ALL


@pytest.mark.parametrize("field", ["logit_bias", "stop_token_ids"])
def test_a_token_that_the_model_does_not_have_is_refused(redis_server: RedisServer, field: str) -> None:
    """Only the worker knows the vocabulary: before the first token, and as a 400 over HTTP."""
    value: Any = {"logit_bias": {str(BEYOND): 1}, "stop_token_ids": [BEYOND]}[field]
    gateway = LiveGateway(redis_server.url)
    try:
        with weather_worker(redis_server.url), gateway.client() as http, Producer(url=redis_server.url) as producer:
            body = {"model": "weather", "prompt": "hi", field: value}
            refusal = http.post("/v1/completions", json=body)
            with pytest.raises(GenerationFailed, match=f"{BEYOND} is no token of this model") as failed:
                producer.submit("hi", **{field: value}).result()
            assert http.post("/v1/completions", json={**body, field: None}).status_code == 200
    finally:
        gateway.stop()
    assert refusal.status_code == 400
    assert f"{field}: {BEYOND} is no token of this model: its token IDs are 0 to " in refusal.json()["error"]["message"]
    assert (failed.value.answer.code, failed.value.answer.tokens) == ("invalid_request", ())
