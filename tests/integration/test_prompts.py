"""Prompts of every form, and their log-probabilities: in Python and over HTTP, across takeovers and lost writes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.gateway.live import LiveGateway
from tests.integration.test_draw_options import weather_worker
from tests.integration.test_logprobs import lose
from tests.waiting import wait_until
from tokenrelay.producer import GenerationFailed, Producer
from tokenrelay.shared.wire import keys
from tokenrelay.shared.wire.entries import State
from tokenrelay.worker.models import weather_model_path

if TYPE_CHECKING:
    from collections.abc import Sequence

    from redis import Redis

    from tests.redis_servers import RedisServer
    from tokenrelay.producer import PromptToken

pytestmark = pytest.mark.timeout(300)
PROMPT: Final = "What is the weather like in the north today? Grüße 🌧"
TOKENIZER: Final = AutoTokenizer.from_pretrained(weather_model_path())
IDS: Final[list[int]] = TOKENIZER(PROMPT)["input_ids"]
SAMPLED: Final[dict[str, Any]] = {"temperature": 3.0, "frequency_penalty": 0.5, "seed": 11, "ignore_eos": True}


def forward(ids: Sequence[int]) -> torch.Tensor:
    """(tokens - 1, vocab): the log-probabilities at each token but the first, by the model's own forward pass."""
    model = AutoModelForCausalLM.from_pretrained(weather_model_path(), dtype=torch.float64)
    with torch.no_grad():
        found: torch.Tensor = model(torch.tensor([ids])).logits[0].log_softmax(dim=-1)[:-1]
    return found


def check(prompt: Sequence[PromptToken], top: int) -> None:
    """The prompt's are the forward pass's, within rounding."""
    first, *rest = prompt
    assert first.logprobs == ()
    for token, row in zip(rest, forward([token.token_id for token in prompt]), strict=True):
        own, *likeliest = token.logprobs
        assert (own.token_id, len(likeliest)) == (token.token_id, top)
        for each in token.logprobs:
            assert each.logprob == pytest.approx(float(row[each.token_id]), rel=1e-5, abs=2e-6)
        assert [each.logprob for each in likeliest] == pytest.approx(row.topk(top).values.tolist(), rel=1e-5, abs=2e-6)


def stored(redis: Redis, request_id: str) -> Any:
    return redis.hget(keys.request(request_id), "prompt_logprobs")


def test_token_ids_are_the_prompt_that_they_encode(redis_server: RedisServer) -> None:
    with Producer(url=redis_server.url) as producer, weather_worker(redis_server.url):
        text = producer.submit(PROMPT, **SAMPLED, max_new_tokens=30)
        ids = producer.submit(prompt_token_ids=IDS, **SAMPLED, max_new_tokens=30)
        assert ids.result().text == text.result().text
        assert [token.token_id for token in ids.prompt()] == IDS == [token.token_id for token in text.prompt()]
        beyond = producer.submit(prompt_token_ids=[1, 10**6])
        with pytest.raises(GenerationFailed, match="prompt_token_ids: 1000000 is no token of this model") as failed:
            beyond.result()
        assert failed.value.answer is not None
        assert failed.value.answer.code == "invalid_request"


def test_prompt_logprobs_survive_a_takeover_as_they_were(redis_server: RedisServer, redis: Redis) -> None:
    """The second worker's plain forward pass differs in the last digits where other requests are prefilled beside it:
    what is stored stays, byte for byte, and isn't computed again."""
    with Producer(url=redis_server.url) as producer:
        with weather_worker(redis_server.url) as first:
            generation = producer.submit(PROMPT, **SAMPLED, max_new_tokens=400, prompt_logprobs=3)
            wait_until(lambda: generation.status().tokens > 5)
            first.stop()
            first.stop()
        assert generation.status().state is State.IN_PROGRESS
        before = stored(redis, generation.request_id)
        marked = before.replace(b"null", b"null ")
        redis.hset(keys.request(generation.request_id), "prompt_logprobs", marked)
        with weather_worker(redis_server.url):
            assert generation.result().attempts == 2
    assert stored(redis, generation.request_id) == marked
    check(generation.prompt(), 3)


def test_what_a_failover_lost_with_the_first_token_is_stored_again(redis_server: RedisServer, redis: Redis) -> None:
    with Producer(url=redis_server.url) as producer, weather_worker(redis_server.url):
        generation = producer.submit(PROMPT, **SAMPLED, max_new_tokens=800, prompt_logprobs=1)
        wait_until(lambda: generation.status().tokens > 5)
        before = stored(redis, generation.request_id)
        redis.hdel(keys.request(generation.request_id), "prompt_logprobs")
        lose(redis, generation.request_id, 0)
        wait_until(lambda: generation.status().state.terminal, 90)
    assert stored(redis, generation.request_id) == before
    check(generation.prompt(), 1)


def test_too_large_prompt_logprobs_fail_before_the_first_token(redis_server: RedisServer) -> None:
    """A prompt given as text: only a worker knows its tokens. Over HTTP that is a 400."""
    gateway = LiveGateway(redis_server.url)
    body = {"model": "weather", "prompt": "a " * 7000, "echo": True, "logprobs": 20, "max_tokens": 1}
    try:
        with weather_worker(redis_server.url), gateway.client() as http:
            answer = http.post("/v1/completions", json=body)
            listed = http.get("/v1/models").json()["data"][0]["capabilities"]
    finally:
        gateway.stop()
    assert answer.status_code == 400
    assert "with prompt_logprobs 20 a prompt has at most 6241 tokens" in answer.json()["error"]["message"]
    assert "prompt_logprobs" in listed


def test_an_echo_in_openais_shape_streamed_and_whole(redis_server: RedisServer) -> None:
    plain = {**SAMPLED, "model": "weather", "max_tokens": 12}
    gateway = LiveGateway(redis_server.url)
    try:
        with weather_worker(redis_server.url), gateway.client() as http:

            def ask(**chosen: Any) -> Any:
                return http.post("/v1/completions", json={**plain, **chosen}).raise_for_status()

            answer = ask(prompt=PROMPT).json()["choices"][0]["text"]
            bare = ask(prompt=PROMPT, echo=True).json()["choices"][0]
            by_ids = ask(prompt=IDS, echo=True).json()["choices"][0]
            listed = ask(prompt=[IDS], echo=True, logprobs=2).json()["choices"][0]
            whole = ask(prompt=PROMPT, echo=True, logprobs=2).json()["choices"][0]
            several = ask(prompt=[PROMPT, IDS, IDS[:4]], echo=True, logprobs=2, n=2).json()
            only = ask(prompt=PROMPT, echo=True, logprobs=2, max_tokens=0).json()
            streams = [
                ask(prompt=PROMPT, echo=True, logprobs=2, stream=True, stream_options={"include_usage": True}, **limit)
                for limit in ({}, {"max_tokens": 0})
            ]
    finally:
        gateway.stop()
    assert (bare["text"], bare["logprobs"]) == (PROMPT + answer, None)
    assert by_ids["text"] == PROMPT + answer, "a character of several tokens is whole"
    assert listed == whole
    assert [choice["index"] for choice in several["choices"]] == list(range(6))
    for index, choice in enumerate(several["choices"][:4]):
        asked = {name: values[: len(IDS)] for name, values in choice["logprobs"].items()}
        assert asked == {name: values[: len(IDS)] for name, values in whole["logprobs"].items()}
        assert (choice == {**whole, "index": index}) == (index in (0, 2)), (
            "the first of each prompt is drawn by the seed"
        )
    assert several["usage"]["prompt_tokens"] == 2 * len(IDS) + 4
    logprobs = whole["logprobs"]
    assert {len(values) for values in logprobs.values()} == {len(IDS) + 12}
    assert (logprobs["token_logprobs"][0], logprobs["top_logprobs"][0]) == (None, None)
    rows = forward(IDS)
    own = [float(row[token_id]) for row, token_id in zip(rows, IDS[1:], strict=True)]
    assert logprobs["token_logprobs"][1 : len(IDS)] == pytest.approx(own, rel=1e-5, abs=2e-6)
    best = [max(names.values()) for names in logprobs["top_logprobs"][1 : len(IDS)]]
    assert best == pytest.approx(rows.max(dim=-1).values.tolist(), rel=1e-5, abs=2e-6)
    assert logprobs["text_offset"][len(IDS)] == len(PROMPT)
    assert only["choices"][0]["text"] == PROMPT
    assert only["choices"][0]["finish_reason"] == "length"
    assert only["choices"][0]["logprobs"] == {name: values[: len(IDS)] for name, values in logprobs.items()}
    assert only["usage"]["completion_tokens"] == 0
    for stream, expected in zip(streams, (whole, only["choices"][0]), strict=True):
        lines = [line.removeprefix("data: ") for line in stream.text.splitlines() if line.startswith("data: {")]
        choices = [choice for line in lines for choice in json.loads(line)["choices"]]
        assert "".join(choice["text"] for choice in choices) == expected["text"]
        parts = [choice["logprobs"] for choice in choices if choice["logprobs"]]
        assert {name: [value for part in parts for value in part[name]] for name in logprobs} == expected["logprobs"]
        assert choices[-1]["finish_reason"] == expected["finish_reason"]
    assert json.loads(lines[-1])["usage"]["completion_tokens"] == 0


def test_a_chat_continues_its_last_message_and_its_template_gets_arguments(redis_server: RedisServer) -> None:
    messages = [{"role": "user", "content": "What is the weather?"}, {"role": "assistant", "content": "It is"}]
    body = {"model": "weather", "messages": messages, "max_tokens": 8, "temperature": 0}
    continued = {"continue_final_message": True, "add_generation_prompt": False, "chat_template_kwargs": {"style": "x"}}
    gateway = LiveGateway(redis_server.url)
    try:
        with weather_worker(redis_server.url), gateway.client() as http:
            answer = http.post("/v1/chat/completions", json={**body, **continued}).raise_for_status()
            raw = {"messages": messages, "max_new_tokens": 3, "prompt_logprobs": 1, "continue_final_message": True}
            request_id = http.post("/requests", json=raw).raise_for_status().json()["request_id"]
            http.get(f"/requests/{request_id}/events")
            prompt = http.get(f"/requests/{request_id}/prompt").raise_for_status().json()["tokens"]
            chat = http.get(f"/requests/{answer.headers['x-request-id']}/prompt").json()["tokens"]
    finally:
        gateway.stop()
    rendered = TOKENIZER.apply_chat_template(messages, continue_final_message=True, return_dict=False)
    assert [token["token_id"] for token in prompt] == rendered == [token["token_id"] for token in chat]
    assert "logprobs" not in prompt[0]
    assert [len(token["logprobs"]) for token in prompt[1:]] == [2] * (len(prompt) - 1)
    assert all("logprobs" not in token for token in chat)


def test_an_evaluator_gets_a_token_behind_the_text_also_where_it_is_the_end(redis_server: RedisServer) -> None:
    """lm-eval takes the last token's log-probability away, whichever it is; elsewhere the end is no token."""
    body = {"model": "weather", "prompt": "What is the weather today?", "temperature": 0, "max_tokens": 40}
    gateway = LiveGateway(redis_server.url)
    try:
        with weather_worker(redis_server.url), gateway.client() as http:

            def ask(**chosen: Any) -> Any:
                return http.post("/v1/completions", json={**body, **chosen}).raise_for_status().json()

            plain = ask(logprobs=1)
            text = body["prompt"] + plain["choices"][0]["text"]
            ids = [*TOKENIZER(body["prompt"])["input_ids"], *TOKENIZER(plain["choices"][0]["text"])["input_ids"][:-1]]
            scored = ask(prompt=ids, echo=True, logprobs=1, max_tokens=1)
            ignoring = ask(prompt=ids, echo=True, logprobs=1, max_tokens=3, ignore_eos=True)
            unscored = ask(prompt=ids, max_tokens=1, echo=True)
    finally:
        gateway.stop()
    assert plain["choices"][0]["finish_reason"] == "stop"
    (choice,) = scored["choices"]
    assert (choice["text"], choice["finish_reason"]) == (text, "stop")
    assert {len(values) for values in choice["logprobs"].values()} == {len(ids) + 1}
    assert {len(values) for values in ignoring["choices"][0]["logprobs"].values()} == {len(ids) + 3}
    assert unscored["usage"]["completion_tokens"] == 0
    assert len(plain["choices"][0]["logprobs"]["tokens"]) == plain["usage"]["completion_tokens"]
