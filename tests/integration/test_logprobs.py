"""Log-probabilities of the raw distribution: in the stream, in Python and over HTTP, across a takeover."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.gateway.live import LiveGateway
from tests.integration.test_draw_options import weather_worker
from tests.waiting import wait_until
from tokenrelay.producer import Producer
from tokenrelay.shared.wire import keys
from tokenrelay.shared.wire.entries import State
from tokenrelay.worker.models import weather_model_path

if TYPE_CHECKING:
    from collections.abc import Sequence

    from redis import Redis

    from tests.redis_servers import RedisServer
    from tokenrelay.shared.wire.entries import Token

pytestmark = pytest.mark.timeout(300)
PROMPT: Final = "What is the weather like in the north today?"
ASK: Final[dict[str, Any]] = {
    "temperature": 3.0,
    "frequency_penalty": 0.5,
    "logit_bias": {"5": 2.0},
    "seed": 11,
    "ignore_eos": True,
    "logprobs": True,
    "top_logprobs": 5,
}
"""The draw changes the scores in every way; the log-probabilities are those of before."""


def expected(redis: Redis, request_id: str, answer: Sequence[Token]) -> torch.Tensor:
    """(tokens, vocab): the log-probabilities at each token of the answer, by the model's own forward pass."""
    raw: Any = redis.hget(keys.request(request_id), "prompt_ids")
    prompt = json.loads(raw)
    model = AutoModelForCausalLM.from_pretrained(weather_model_path(), dtype=torch.float64)
    with torch.no_grad():
        logits = model(torch.tensor([prompt + [token.token_id for token in answer]])).logits[0]
    found: torch.Tensor = logits.log_softmax(dim=-1)[len(prompt) - 1 : -1]
    return found


def check(answer: Sequence[Token], found: torch.Tensor, top: int) -> None:
    """Each token's and its alternatives', within rounding: parts of the model compute in float32."""
    for token, row in zip(answer, found, strict=True):
        drawn, *likeliest = token.logprobs
        assert (drawn.token_id, len(likeliest)) == (token.token_id, top)
        for each in token.logprobs:
            assert each.logprob == pytest.approx(float(row[each.token_id]), rel=1e-5, abs=2e-6)
        assert [each.logprob for each in likeliest] == pytest.approx(row.topk(top).values.tolist(), rel=1e-5, abs=2e-6)


def test_they_are_the_forward_passs_also_after_a_takeover(redis_server: RedisServer, redis: Redis) -> None:
    with Producer(url=redis_server.url) as producer:

        def submit(**chosen: Any) -> Any:
            return producer.submit(PROMPT, **{**ASK, "max_new_tokens": 400, **chosen})

        with weather_worker(redis_server.url) as first:
            cut = [submit(), submit(top_logprobs=0), submit(logprobs=False, top_logprobs=0)]
            wait_until(lambda: all(generation.status().tokens > 5 for generation in cut))
            first.stop()
            first.stop()
        assert all(generation.status().state is State.IN_PROGRESS for generation in cut)
        with weather_worker(redis_server.url):
            many, own, none = [generation.result() for generation in cut]
    assert [answer.attempts for answer in (many, own, none)] == [2, 2, 2]
    ids = [token.token_id for token in none.tokens]
    assert [[token.token_id for token in answer.tokens] for answer in (many, own)] == [ids, ids]
    found = expected(redis, many.request_id, many.tokens)
    check(many.tokens, found, 5)
    check(own.tokens, found, 0)
    assert all(token.logprobs == () for token in none.tokens)
    entries: Any = redis.xrange(keys.stream(none.request_id), "1-0", "1-0")
    assert list(entries[0][1]) == [b"text", b"token", b"at_us"]
    special = AutoTokenizer.from_pretrained(weather_model_path()).all_special_ids
    written = b"".join(token.logprobs[0].bytes for token in many.tokens if token.token_id not in special)
    assert written.decode("utf-8", "replace") == many.text


def lose(redis: Redis, request_id: str, left: int) -> None:
    """Play a failover to a replica that has `left` tokens."""
    key, stream = keys.request(request_id), keys.stream(request_id)
    entries: Any = redis.xrange(stream, "-", f"{left}-0" if left else "0-9")
    with redis.pipeline() as transaction:
        transaction.delete(stream)
        for entry_id, fields in entries:
            transaction.xadd(stream, fields, id=entry_id)
        transaction.expire(stream, 60)
        transaction.hset(key, mapping={"next": left + 1, "events": 0 if left else len(entries)})
        transaction.execute()


def test_tokens_that_redis_lost_are_sent_again_with_theirs(redis_server: RedisServer, redis: Redis) -> None:
    """Those of the attempt before, too, which this worker has from its claim alone."""
    with Producer(url=redis_server.url) as producer:
        with weather_worker(redis_server.url) as first:
            generation = producer.submit(PROMPT, **ASK, max_new_tokens=800)
            wait_until(lambda: generation.status().tokens > 5)
            first.stop()
            first.stop()
        emitted = generation.status().tokens
        with weather_worker(redis_server.url):
            wait_until(lambda: generation.status().tokens > emitted)
            lose(redis, generation.request_id, 3)
            entries: Any = wait_until(
                lambda: (
                    generation.status().state.terminal and redis.xrange(keys.stream(generation.request_id), "1-0", "+")
                ),
                90,
            )
    tokens = [fields for _, fields in entries if b"token" in fields]
    assert len(tokens) == 800
    assert all(len(json.loads(fields[b"logprobs"])) == 6 for fields in tokens)


def test_openais_shapes_hold_them_streamed_and_whole(redis_server: RedisServer) -> None:
    sampling = {**ASK, "model": "weather", "max_tokens": 12}
    del sampling["logprobs"], sampling["top_logprobs"]
    chat = {**sampling, "messages": [{"role": "user", "content": PROMPT}], "logprobs": True, "top_logprobs": 2}
    completion = {**sampling, "prompt": PROMPT, "logprobs": 2}
    gateway = LiveGateway(redis_server.url)
    try:
        with weather_worker(redis_server.url), gateway.client() as http:
            (whole,) = http.post("/v1/chat/completions", json=chat).raise_for_status().json()["choices"]
            streamed = _choices(http, "/v1/chat/completions", chat)
            (text,) = http.post("/v1/completions", json=completion).raise_for_status().json()["choices"]
            pieces = _choices(http, "/v1/completions", completion)
            raw = http.post("/requests", json={**ASK, "prompt": PROMPT, "max_new_tokens": 3}).json()["request_id"]
            events = http.get(f"/requests/{raw}/events").text
    finally:
        gateway.stop()
    content = whole["logprobs"]["content"]
    assert len(content) == 12
    assert all(len(item["top_logprobs"]) == 2 for item in content)
    assert all(bytes(item["bytes"]).decode("utf-8", "replace") == item["token"] for item in content)
    assert [item for choice in streamed for item in (choice["logprobs"] or {"content": []})["content"]] == content
    assert "".join(choice["delta"].get("content", "") for choice in streamed) == whole["message"]["content"]
    parts = [choice["logprobs"] for choice in pieces if choice["logprobs"]]
    for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
        assert [value for part in parts for value in part[name]] == text["logprobs"][name], name
    assert len(text["logprobs"]["tokens"]) == 12
    assert text["logprobs"]["token_logprobs"] == [values[name] for values, name in _drawn(text["logprobs"])]
    offsets = text["logprobs"]["text_offset"]
    assert offsets == sorted(offsets)
    assert offsets[0] == 0
    tokens = [json.loads(line.removeprefix("data: ")) for line in events.splitlines() if '"token_id"' in line]
    assert [len(token["logprobs"]) for token in tokens] == [6, 6, 6]


def _drawn(logprobs: dict[str, Any]) -> list[tuple[dict[str, float], str]]:
    return list(zip(logprobs["top_logprobs"], logprobs["tokens"], strict=True))


def _choices(http: Any, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    """The choices of a streamed answer's chunks."""
    answer = http.post(path, json={**body, "stream": True}).raise_for_status().text
    lines = [line.removeprefix("data: ") for line in answer.splitlines() if line.startswith("data: {")]
    return [choice for line in lines for choice in json.loads(line)["choices"]]


def test_a_response_holds_them_streamed_whole_and_read_again(redis_server: RedisServer) -> None:
    """Every token's delta has its own, also where its text is held back; the finished item has all."""
    sampling = {**ASK, "model": "weather", "max_output_tokens": 12, "stop": ["never written, but held back for"]}
    del sampling["logprobs"]
    body = {**sampling, "input": PROMPT, "include": ["message.output_text.logprobs"], "top_logprobs": 2}
    gateway = LiveGateway(redis_server.url)
    try:
        with weather_worker(redis_server.url), gateway.client() as http:
            whole = http.post("/v1/responses", json=body).raise_for_status().json()
            again = http.get(f"/v1/responses/{whole['id']}").raise_for_status().json()
            streamed = http.post("/v1/responses", json={**body, "stream": True}).raise_for_status().text
            plain = http.post("/v1/responses", json={**body, "include": [], "top_logprobs": 0}).json()
            refused = http.post("/v1/responses", json={**body, "top_logprobs": 21})
            history = [{"role": "user", "content": PROMPT}, *whole["output"], {"role": "user", "content": PROMPT}]
            next_turn = http.post("/v1/responses", json={"model": "weather", "input": history}).raise_for_status()
    finally:
        gateway.stop()
    (item,) = whole["output"][0]["content"]
    assert (len(item["logprobs"]), whole["top_logprobs"]) == (12, 2)
    assert all(len(each["top_logprobs"]) == 2 for each in item["logprobs"])
    written = b"".join(bytes(each["bytes"]) for each in item["logprobs"])
    assert written.decode("utf-8", "replace") == item["text"]
    assert again == whole
    assert "x-tokenrelay-ignored" not in next_turn.headers
    events = [json.loads(line.removeprefix("data: ")) for line in streamed.splitlines() if line.startswith("data: {")]
    by_kind = {event["type"].removeprefix("response."): event for event in events}
    deltas = [event for event in events if event["type"] == "response.output_text.delta"]
    assert [each for event in deltas for each in event["logprobs"]] == item["logprobs"]
    assert [len(event["logprobs"]) for event in deltas[:12]] == [1] * 12
    assert by_kind["output_text.done"]["logprobs"] == item["logprobs"]
    assert by_kind["content_part.done"]["part"] == item
    assert by_kind["output_item.done"]["item"]["content"] == [item]
    assert by_kind["incomplete"]["response"]["output"][0]["content"] == [item]
    assert (plain["output"][0]["content"][0]["logprobs"], plain["top_logprobs"]) == ([], 0)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "top_logprobs")
