"""The last release beside today's, streams in flight: workers, readers and gateways serve each other's requests.

An upgrade runs both for a while: readers first, then gateways, then workers, one after the other. No token may be
lost, repeated or changed by it, and the way back must be open, too.
"""

from __future__ import annotations

import json
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import httpx
import pytest

from tests.gateway.events import dispatch, split_lines
from tests.redis_servers import free_port
from tests.waiting import wait_until
from tokenrelay.producer import Producer
from tokenrelay.shared import options
from tokenrelay.shared.options import Limits, body_sha256, dump, validate
from tokenrelay.shared.wire import keys
from tokenrelay.shared.wire.entries import State, Token
from tokenrelay.worker.models import weather_model_path

if TYPE_CHECKING:
    from collections.abc import Iterator

    from redis import Redis

    from tests.compat.release import Process, Release
    from tokenrelay.producer.generation import Generation

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
BOTH_WAYS: Final = pytest.mark.parametrize(("first", "second"), [("earlier", "today"), ("today", "earlier")])
LIMITS: Final = Limits(max_prompt_chars=200_000, max_new_tokens=8192)
LONG: Final[dict[str, Any]] = {"ignore_eos": True, "max_new_tokens": 600, "temperature": 3.0, "deadline_s": 240}
"""A sentence that can go wrong: nearly every token of the bundled model's is a surprise at this temperature."""
STREAMS: Final = 6


@contextmanager
def worker(release: Release, url: str, name: str) -> Iterator[Process]:
    """A worker of the release with today's bundled model in float64, once it's registered as idle or busy.

    Releases may bundle different models, and a worker continues the streams of its own model only.
    """
    environment = {
        "TOKENRELAY_MODEL_PATH": str(weather_model_path()),
        "TOKENRELAY_REDIS_URL": url,
        "TOKENRELAY_WORKER_NAME": name,
        "TOKENRELAY_DTYPE": "float64",
        "TOKENRELAY_DEVICE": "cpu",
        "TOKENRELAY_LEASE_MS": "1500",
        "TOKENRELAY_DRAIN_TIMEOUT_S": "0",
    }
    with release.start("tokenrelay.worker", "run", **environment) as process:
        yield process


def await_worker(redis: Redis, name: str, process: Process) -> None:
    def registered() -> bool:
        assert process.running, process.log
        return bool(redis.exists(keys.rq_worker(f"{name}.0")))

    wait_until(registered, timeout_s=150)


def submit(producer: Producer, **chosen: Any) -> list[Generation]:
    question = "What is the weather like in the north today?"
    return [producer.submit(question, seed=seed, **{**LONG, **chosen}) for seed in range(STREAMS)]


def tokens(generation: Generation) -> list[tuple[int, str]]:
    return [(token.token_id, token.text) for token in generation]


@BOTH_WAYS
@pytest.mark.parametrize("end", ["killed", "drained"])
def test_a_worker_goes_on_with_the_other_releases_streams(
    releases: dict[str, Release], url: str, redis: Redis, first: str, second: str, end: str
) -> None:
    """In float64 the continuation is the undisturbed one, token for token; both releases' readers read all of it."""
    with Producer(url=url) as producer:
        with worker(releases[first], url, "first") as begun:
            await_worker(redis, "first", begun)
            generations = submit(producer)
            followers = [
                releases[name].start(
                    releases[name].cli, "follow", "--json", generations[0].request_id, TOKENRELAY_REDIS_URL=url
                )
                for name in (first, second)
            ]
            for generation in generations:
                wait_until(lambda generation=generation: generation.status().tokens > 5, timeout_s=60)  # type: ignore[misc]
            begun.kill() if end == "killed" else begun.terminate()
            cut = [generation.status().tokens for generation in generations]
        assert all(5 < at < LONG["max_new_tokens"] for at in cut), cut
        with worker(releases[second], url, "second") as going_on:
            await_worker(redis, "second", going_on)
            whole = [tokens(generation) for generation in generations]
            undisturbed = [tokens(generation) for generation in submit(producer)]
            assert all(generation.status().attempts > 1 for generation in generations)
        assert whole == undisturbed
    for follower in followers:
        with follower:
            wait_until(lambda follower=follower: not follower.running, timeout_s=60)  # type: ignore[misc]
            lines = [json.loads(line) for line in follower.log.splitlines() if line.startswith("{")]
            assert [(line["token_id"], line["text"]) for line in lines if line["kind"] == "token"] == whole[0]
            assert [line["kind"] for line in lines if line["kind"] != "token"][-1] == "incomplete"


def test_an_old_worker_leaves_what_only_a_new_one_can_do(releases: dict[str, Release], url: str, redis: Redis) -> None:
    """Requests of wire version 2 wait, untouched, while it serves those of version 1 behind them; a new one beside it
    takes them, and old readers read what that writes."""
    chosen: dict[str, Any] = {"frequency_penalty": 0.5, "min_p": 0.05, "max_new_tokens": 40}
    with Producer(url=url) as producer:
        with worker(releases["earlier"], url, "old") as old:
            await_worker(redis, "old", old)
            waiting = submit(producer, **chosen)
            plain = submit(producer, max_new_tokens=40)
            served = [generation.result() for generation in plain]
            assert all(generation.status().state is State.QUEUED for generation in waiting)
            hashes = [redis.hgetall(keys.request(generation.request_id)) for generation in waiting]
            assert all(fields[b"wire"] == b"2" and b"effective" not in fields for fields in hashes)
            with worker(releases["today"], url, "new") as new:
                await_worker(redis, "new", new)
                whole = [tokens(generation) for generation in waiting]
                answers = [generation.result() for generation in waiting]
                repeated = [tokens(generation) for generation in submit(producer, **chosen)]
        follow = releases["earlier"].start(
            releases["earlier"].cli, "follow", "--json", waiting[0].request_id, TOKENRELAY_REDIS_URL=url
        )
        with follow:
            wait_until(lambda: not follow.running, timeout_s=60)
            lines = [json.loads(line) for line in follow.log.splitlines() if line.startswith("{")]
    assert whole == repeated
    assert [answer.attempts for answer in answers] == [1] * STREAMS
    assert [answer.text for answer in answers] != [answer.text for answer in served]
    assert [(line["token_id"], line["text"]) for line in lines if line["kind"] == "token"] == whole[0]


@contextmanager
def gateway(release: Release, url: str) -> Iterator[str]:
    """A gateway's address, once it answers."""
    port = free_port()
    environment = {"TOKENRELAY_REDIS_URL": url, "TOKENRELAY_HTTP_PORT": str(port)}
    with release.start(release.cli, "serve", **environment) as process:
        address = f"http://127.0.0.1:{port}"

        def answers() -> bool:
            assert process.running, process.log
            try:
                return httpx.get(f"{address}/health").is_success
            except httpx.TransportError:
                return False

        wait_until(answers, timeout_s=60)
        yield address


def events(address: str, request_id: str, after: str | None, most: int | None) -> list[tuple[str, str]]:
    """(ID, data) of a request's events at a gateway, behind the one with the ID `after`."""
    headers = {} if after is None else {"Last-Event-ID": after}
    found = []
    with httpx.stream("GET", f"{address}/requests/{request_id}/events", headers=headers, timeout=120) as answer:
        assert answer.status_code == 200, answer.read()
        for event in dispatch(split_lines(answer.iter_text())):
            found.append((event.last_id, event.data))
            if len(found) == most:
                break
    return found


@BOTH_WAYS
def test_a_stream_is_read_on_at_the_other_releases_gateway(
    releases: dict[str, Release], url: str, redis: Redis, first: str, second: str
) -> None:
    """Asked at the gateway of one release, generated by the worker of the other, read half at each."""
    with worker(releases[second], url, "worker") as process, gateway(releases[first], url) as one:
        await_worker(redis, "worker", process)
        body = {"prompt": "What is the weather today?", "seed": 5, **LONG, "max_new_tokens": 200}
        request_id = httpx.post(f"{one}/requests", json=body).raise_for_status().json()["request_id"]
        chat = {
            "model": "weather",
            "messages": [{"role": "user", "content": "What is the weather today?"}],
            "temperature": 0,
        }
        answer = (
            httpx.post(f"{one}/v1/chat/completions", json={**chat, "max_tokens": 40}, timeout=60)
            .raise_for_status()
            .json()
        )
        with gateway(releases[second], url) as other:
            half = events(one, request_id, None, 100)
            rest = events(other, request_id, half[-1][0], None)
            again = (
                httpx.post(f"{other}/v1/chat/completions", json={**chat, "max_tokens": 40}, timeout=60)
                .raise_for_status()
                .json()
            )
            assert events(one, request_id, None, None) == half + rest
    assert answer["choices"][0]["message"]["content"] == again["choices"][0]["message"]["content"] != ""
    with Producer(url=url) as producer:
        whole = [entry for entry in producer.get(request_id).entries() if isinstance(entry, Token)]
    assert len(whole) == 200


REQUESTS: Final[tuple[dict[str, Any], ...]] = (
    {"prompt": "What is the weather today?", "max_new_tokens": 64},
    {"prompt": "Weiß man’s?", "max_new_tokens": 1, "temperature": 0, "seed": 3, "stop": ["."], "deadline_s": 1.5},
    {
        "messages": [{"role": "user", "content": "hello"}],
        "top_k": 4,
        "top_p": 0.5,
        "max_new_tokens": 5,
        "priority": "high",
    },
    {"prompt": "x", "max_new_tokens": 7, "ignore_eos": True, "metadata": {"a": [1, None]}, "idempotency_key": "k"},
)
WRITE: Final = """
import json, sys
from tokenrelay.shared.options import Limits, body_sha256, dump, validate
limits = Limits(max_prompt_chars=200_000, max_new_tokens=8192)
requests = [validate(request, limits) for request in json.load(sys.stdin)]
print(json.dumps([[dump(request), body_sha256(request)] for request in requests]))
"""


def test_what_version_1_could_ask_is_written_byte_for_byte_as_before(releases: dict[str, Release]) -> None:
    before = json.loads(releases["earlier"].output(WRITE, json.dumps(REQUESTS)))
    now = [validate(request, LIMITS) for request in REQUESTS]
    assert [[dump(request), body_sha256(request, LIMITS)] for request in now] == before
    assert [options.load(body) for body, _ in before] == [options.load(dump(request)) for request in now]


def test_the_hash_and_the_stream_begin_as_before(releases: dict[str, Release], url: str, redis: Redis) -> None:
    """Field for field, apart from what is drawn and what the clock says."""
    submitted = f"Producer(url={url!r}).submit('hi', max_new_tokens=9, seed=1).request_id"
    ask = f"from tokenrelay.producer import Producer; print({submitted})"
    written = []
    for name in ("earlier", "today"):
        request_id = releases[name].output(ask).strip()
        fields: dict[bytes, bytes] = redis.hgetall(keys.request(request_id))  # type: ignore[assignment]
        job: dict[bytes, bytes] = redis.hgetall(keys.rq_job(request_id))  # type: ignore[assignment]
        stream: Any = redis.xrange(keys.stream(request_id))
        ((entry_id, entry),) = stream
        del fields[b"deadline_us"], entry[b"at_us"]
        written.append((fields, sorted(job), entry_id, entry))
        redis.flushall()
    assert written[0] == written[1]
