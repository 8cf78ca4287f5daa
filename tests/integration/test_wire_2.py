"""Requests of wire version 2: what is stored of them, and that every worker obeys what the first claim decided."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import pytest

from tests.engines import ALL_OPTIONS, CountingEngine, counted_token
from tests.gateway.live import LiveGateway
from tests.integration.test_repairs import redis_server_url
from tests.integration.test_worker import QUEUE, refused, result, slow_engine, state, words
from tests.waiting import wait_until
from tests.workers import MODEL, VOCABULARY, running_worker
from tokenrelay.producer import Producer
from tokenrelay.shared.store import requests
from tokenrelay.shared.store.replies import Granted
from tokenrelay.shared.store.requests import Claimant, Prompt
from tokenrelay.shared.wire import keys
from tokenrelay.shared.wire.entries import State

if TYPE_CHECKING:
    from redis import Redis

    from tests.redis_servers import RedisServer
    from tokenrelay.shared.redis.batches import Pipeline
    from tokenrelay.worker.engine.contract import EngineRequest

NOW: Final = datetime.now(UTC)
ASK: Final[dict[str, Any]] = {"model": MODEL, "max_new_tokens": 40, "seed": 7}
NEW: Final[dict[str, Any]] = {"stop_token_ids": [VOCABULARY]}
"""Asks for wire version 2 and changes nothing: no answer here has this token."""
DECIDED: Final = {
    "budget": 40,
    "temperature": 1.0,
    "top_k": 0,
    "top_p": 1.0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "draw": 1,
    "tool_parser": None,
    "reasoning_parser": None,
    "grammar": None,
}
VERSION_1: Final = {
    "prompt", "messages", "model", "priority", "max_new_tokens", "temperature", "top_k", "top_p", "seed", "stop",
    "ignore_eos", "deadline_s", "metadata",
}  # fmt: skip


class RecordingEngine(CountingEngine):
    """Keeps the requests that it is given."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(vocabulary=VOCABULARY, **settings)
        self.requests: list[EngineRequest] = []

    def add(self, request: EngineRequest) -> None:
        self.requests.append(request)
        super().add(request)


def stored(redis: Redis, request_id: str) -> tuple[bytes, dict[str, Any], dict[str, Any] | None]:
    """The hash's wire, request and effective."""
    fields: Any = redis.hgetall(keys.request(request_id))
    effective = fields.get(b"effective")
    return fields[b"wire"], json.loads(fields[b"request"]), json.loads(effective) if effective else None


def queued_wire(redis: Redis, request_id: str) -> bytes:
    """What the `queued` event says."""
    entries: Any = redis.xrange(keys.stream(request_id), count=1)
    wire: bytes = entries[0][1][b"wire"]
    return wire


def held(redis: Redis, request_id: str, field: str) -> dict[str, Any]:
    """A field of the hash that holds a JSON object."""
    raw: Any = redis.hget(keys.request(request_id), field)
    found: dict[str, Any] = json.loads(raw)
    return found


@pytest.fixture
def producer(redis_server: RedisServer) -> Any:
    with Producer(url=redis_server.url) as made:
        yield made


def test_a_request_that_asks_for_nothing_new_is_version_1s(producer: Producer, redis: Redis) -> None:
    """Also where an option of version 2 is given with the value that changes nothing."""
    neutral: dict[str, Any] = {"repetition_penalty": 1.0, "min_p": 0, "logit_bias": {3: 0}, "min_tokens": 0}
    for chosen in ({}, neutral):
        request_id = producer.submit("w1", **ASK, **chosen).request_id
        wire, body, effective = stored(redis, request_id)
        assert (wire, effective) == (b"1", None)
        assert body.keys() == VERSION_1
        assert queued_wire(redis, request_id) == b"1"


def test_one_that_does_stores_what_was_given_and_no_more(producer: Producer, redis: Redis) -> None:
    """What the model may have a default for stands there only where it was given: the first claim decides it."""
    request_id = producer.submit("w1", **ASK, stop_token_ids=[5], min_tokens=0, min_p=0, top_k=9).request_id
    wire, body, effective = stored(redis, request_id)
    assert (wire, effective) == (b"2", None)
    assert body.keys() == VERSION_1 - {"temperature", "top_p"} | {"stop_token_ids", "min_p"}
    assert (body["stop_token_ids"], body["min_p"], body["top_k"]) == ([5], 0, 9)
    assert queued_wire(redis, request_id) == b"2"


def test_the_models_own_new_default_makes_it_version_2s(redis_server: RedisServer, redis: Redis) -> None:
    """A version 1 request is drawn without it; where the caller gave the option, the model's default doesn't count."""
    engine = RecordingEngine(options=ALL_OPTIONS)
    own = {"temperature": 0.5, "min_p": 0.25}
    with running_worker(redis_server.url, engine, defaults=own), Producer(url=redis_server.url) as producer:
        silent = producer.submit("w1", **ASK)
        assert stored(redis, silent.request_id)[:1] == (b"2",)
        assert stored(redis, silent.request_id)[1].keys() == VERSION_1 - {"temperature", "top_k", "top_p"}
        given = producer.submit("w1", **ASK, min_p=0)
        assert stored(redis, given.request_id)[0] == b"1"
        both = producer.submit("w1", **ASK, **NEW, min_p=0)
        for generation in (silent, given, both):
            generation.result()
    assert stored(redis, silent.request_id)[2] == {**DECIDED, "temperature": 0.5, "min_p": 0.25}
    assert stored(redis, given.request_id)[2] is None
    assert stored(redis, both.request_id)[2] == {**DECIDED, "temperature": 0.5, "min_p": 0}
    drawn = [(request.sampling.temperature, request.sampling.min_p) for request in engine.requests]
    assert drawn == [(0.5, 0.25), (0.5, 0.0), (0.5, 0.0)]


def test_a_later_claim_obeys_what_the_first_one_decided(redis_server: RedisServer, redis: Redis) -> None:
    """The second worker's model folder says something else, and its operator gives it more context."""
    first, second = RecordingEngine(step_delay_s=0.02, context_tokens=203), RecordingEngine()
    with Producer(url=redis_server.url) as producer:
        with running_worker(redis_server.url, first, defaults={"temperature": 0.25}, drain_timeout_s=0):
            generation = producer.submit("w1 w2 w3", model=MODEL, seed=7, max_new_tokens=5000, **NEW)
            wait_until(lambda: generation.status().tokens > 5)
        decided = stored(redis, generation.request_id)[2]
        assert decided == {**DECIDED, "budget": 200, "temperature": 0.25}
        with running_worker(redis_server.url, second, defaults={"temperature": 3.0}):
            answer = generation.result()
    assert (answer.text, answer.finish_reason, answer.attempts) == (words(7, 200), "length", 2)
    assert stored(redis, generation.request_id)[2] == decided
    assert [request.sampling.temperature for request in (*first.requests, *second.requests)] == [0.25, 0.25]


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("draw", 2),
        ("tool_parser", "hermes"),
        ("grammar", {"library": "another", "version": "1"}),
        ("budget", 5000),
        ("tasted_by", "a later release"),
    ],
)
def test_what_a_worker_can_not_obey_goes_back_untouched(
    redis_server: RedisServer, redis: Redis, member: str, value: Any
) -> None:
    """It isn't failed, nothing of it is changed, and the worker serves the requests behind it."""
    with Producer(url=redis_server.url) as producer:
        with running_worker(redis_server.url, slow_engine(), drain_timeout_s=0):
            generation = producer.submit("w1", **ASK, **NEW)
            wait_until(lambda: generation.status().tokens > 2)
        key = keys.request(generation.request_id)
        assert state(redis, generation.request_id) == "in_progress"
        decided = held(redis, generation.request_id, "effective")
        redis.hset(key, "effective", json.dumps({**decided, member: value}))
        before = redis.hgetall(key)
        with running_worker(redis_server.url) as worker:
            wait_until(lambda: refused(worker))
            assert producer.submit("w1", **ASK, **NEW).result().state is State.INCOMPLETE
        assert redis.hgetall(key) == before
        assert redis.lrange(keys.rq_queue(QUEUE), 0, -1) == [generation.request_id.encode()]
        redis.hset(key, "effective", json.dumps(decided))
        redis.hdel(keys.rq_job(generation.request_id), *refusals(redis, generation.request_id))
        with running_worker(redis_server.url):
            assert generation.result().text == words(7, 40)


def test_what_is_stored_first_stays(pipeline: Pipeline, redis: Redis) -> None:
    """Also for a claim that was made before the worker could read it."""
    with Producer(url=redis_server_url(redis)) as producer:
        request_id = producer.submit("w1", **ASK, **NEW).request_id
    claimant = Claimant("w", MODEL, "counting-1", lease_ms=5000, max_crashes=3, suspicion_ms=500, wire=2)
    granted = []
    for execution, temperature in (("x1", 0.25), ("x2", 3.0)):
        prompt = Prompt(7, 1, "[1]", b"", json.dumps({**DECIDED, "temperature": temperature}))
        granted.append(pipeline.ask(requests.claim(request_id, execution, claimant, prompt)))
        pipeline.ask(requests.release(request_id, execution, crashed=False))
    assert all(isinstance(each, Granted) for each in granted)
    assert [json.loads(each.effective)["temperature"] for each in granted if isinstance(each, Granted)] == [0.25, 0.25]
    assert held(redis, request_id, "effective")["temperature"] == 0.25


def test_a_worker_that_refuses_decides_nothing(pipeline: Pipeline, redis: Redis) -> None:
    """It claims the request to end it. Where it dies before that, the next one finds a request that nobody decided."""
    with Producer(url=redis_server_url(redis)) as producer:
        request_id = producer.submit("w1", **ASK, **NEW).request_id
    claimant = Claimant("w", MODEL, "counting-1", lease_ms=5000, max_crashes=3, suspicion_ms=500, wire=2)
    assert isinstance(pipeline.ask(requests.claim(request_id, "x1", claimant, Prompt(7, 1, "[1]"))), Granted)
    assert redis.hget(keys.request(request_id), "effective") is None
    pipeline.ask(requests.release(request_id, "x1", crashed=True))
    granted = pipeline.ask(requests.claim(request_id, "x2", claimant, Prompt(7, 1, "[1]", b"", json.dumps(DECIDED))))
    assert isinstance(granted, Granted)
    assert json.loads(granted.effective) == DECIDED


def refusals(redis: Redis, request_id: str) -> list[bytes]:
    """The job's fields that keep workers away that were refused it."""
    fields: Any = redis.hkeys(keys.rq_job(request_id))
    return [name for name in fields if b"refused:" in name]


@pytest.mark.parametrize("damaged", [b"{", b"[1]x", b'"text"'])
def test_an_unreadable_decision_fails_the_request_alone(
    redis_server: RedisServer, redis: Redis, damaged: bytes
) -> None:
    with Producer(url=redis_server.url) as producer:
        generation = producer.submit("w1", **ASK, **NEW)
        redis.hset(keys.request(generation.request_id), "effective", damaged)
        with running_worker(redis_server.url):
            assert producer.submit("w1", **ASK).result().state is State.INCOMPLETE
            assert result(redis, generation.request_id).state is State.FAILED


def test_an_engine_without_an_option_leaves_the_request_to_one_that_has_it(
    redis_server: RedisServer, redis: Redis
) -> None:
    with Producer(url=redis_server.url) as producer:
        with running_worker(redis_server.url, CountingEngine(options=ALL_OPTIONS - {"min_p"})) as worker:
            generation = producer.submit("w1", **ASK, min_p=0.5)
            wait_until(lambda: refused(worker))
        assert state(redis, generation.request_id) == "queued"
        redis.hdel(keys.rq_job(generation.request_id), *refusals(redis, generation.request_id))
        with running_worker(redis_server.url, CountingEngine(options=ALL_OPTIONS, vocabulary=VOCABULARY)):
            assert generation.result().text == words(7, 40)


def test_an_option_that_only_a_later_release_knows_is_left_to_it(redis_server: RedisServer, redis: Redis) -> None:
    with Producer(url=redis_server.url) as producer:
        generation = producer.submit("w1", **ASK, **NEW)
        key = keys.request(generation.request_id)
        body = held(redis, generation.request_id, "request")
        redis.hset(key, "request", json.dumps({**body, "thinking_budget": 5}))
        with running_worker(redis_server.url) as worker:
            wait_until(lambda: refused(worker))
        assert state(redis, generation.request_id) == "queued"


def test_a_version_1_request_with_a_new_field_fails(redis_server: RedisServer, redis: Redis) -> None:
    """Nothing may change what is asked without raising `wire`: an old worker would ignore it."""
    with Producer(url=redis_server.url) as producer:
        generation = producer.submit("w1", **ASK)
        key = keys.request(generation.request_id)
        body = held(redis, generation.request_id, "request")
        redis.hset(key, "request", json.dumps({**body, **NEW}))
        with running_worker(redis_server.url):
            failed = result(redis, generation.request_id)
    assert (failed.state, failed.code) == (State.FAILED, "invalid_request")
    assert "stop_token_ids" in (failed.message or "")


def test_a_gateway_refuses_what_no_live_worker_knows(redis_server: RedisServer, redis: Redis) -> None:
    """A worker of the last release registers no wire version. Without any worker the request waits, as ever."""
    gateway = LiveGateway(redis_server.url, model=MODEL)
    body = {"model": MODEL, "prompt": "w1", "max_tokens": 3}
    try:
        with gateway.client() as http:
            assert http.post("/requests", json={"model": MODEL, "prompt": "w1", **NEW}).status_code == 202
            with running_worker(redis_server.url) as worker:
                assert http.post("/v1/completions", json={**body, **NEW}).status_code == 200
                (model,) = http.get("/v1/models").json()["data"]
                assert (model["wire"], model["capabilities"]) == (2, [])
                redis.hdel(keys.rq_worker(worker.name), "wire", "capabilities")
                (model,) = http.get("/v1/models").json()["data"]
                assert model["wire"] == 1
                refusal = http.post("/v1/completions", json={**body, **NEW})
                assert http.post("/v1/completions", json=body).status_code == 200
    finally:
        gateway.stop()
    assert refusal.status_code == 400
    error = refusal.json()["error"]
    assert (error["param"], error["code"]) == ("stop_token_ids", "unsupported_parameter")
    assert "no live worker of the model 'counting' supports it" in error["message"]


@pytest.mark.parametrize("include", [False, True])
def test_a_stop_token_ends_the_answer_wherever_it_was_handed_over(
    redis_server: RedisServer, redis: Redis, include: bool
) -> None:
    """Handed back before each of the last tokens, the last one among them: the answer is the undisturbed one."""
    ids = [counted_token(7, position, VOCABULARY) for position in range(1, 30)]
    stop = next(index for index in range(10, 29) if ids.index(ids[index]) == index)
    expected = words(7, stop + 1 if include else stop)
    ask: dict[str, Any] = {**ASK, "stop_token_ids": [ids[stop]], "include_stop_str_in_output": include}
    with Producer(url=redis_server.url) as producer:
        with running_worker(redis_server.url):
            whole = producer.submit("w1 w2 w3", **ask).result()
        assert (whole.text, whole.finish_reason, whole.state) == (expected, "stop", State.COMPLETED)
        with running_worker(redis_server.url, slow_engine(), drain_timeout_s=0):
            generation = producer.submit("w1 w2 w3", **ask)
            wait_until(lambda: generation.status().tokens > 3)
        assert generation.status().state is State.IN_PROGRESS
        with running_worker(redis_server.url):
            again = generation.result()
    assert (again.text, again.finish_reason, again.attempts) == (expected, "stop", 2)
    assert [token.token_id for token in again.tokens] == [token.token_id for token in whole.tokens]
