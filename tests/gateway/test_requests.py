"""/requests: submit, status, events, resume, cancel, trace."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

import pytest

from tests.gateway.events import following, parse
from tests.waiting import wait_until
from tests.writers import End
from tokenrelay.shared.wire import keys

if TYPE_CHECKING:
    import httpx
    from redis import Redis

    from tests.gateway.conftest import MakeGateway
    from tests.gateway.live import LiveGateway, WakingWriter

WEATHER_QUEUE: Final = keys.queue("weather", "default")


LATER: Final = {
    "model": "weather",
    "messages": [{"role": "user", "content": "x"}, {"role": "tool", "content": "y", "tool_call_id": "call_1"}],
    "metadata": {"a": 1},
    "max_new_tokens": 9,
    "logprobs": True,
}
"""A request of the next wire version: with unknown fields, and without those that the first claim decides."""


def test_a_request_of_a_later_version_is_shown_and_read_without_what_is_new(
    http: httpx.Client, redis: Redis, writer: WakingWriter, running: str
) -> None:
    redis.hset(keys.request(running), mapping={"wire": 2, "request": json.dumps(LATER), "effective": "{}"})
    for number, kind in enumerate(("preempted", "forked"), 1):
        redis.xadd(keys.stream(running), {"event": kind, "at_us": 5, "worker": "w"}, id=f"3-{number}")
    status = http.get(f"/requests/{running}").raise_for_status().json()
    assert (status["state"], status["model"], status["tokens"]) == ("in_progress", "weather", 3)
    writer.append(running, " and")
    writer.finish(running)
    kinds = ["queued", "started", *["token"] * 4, "completed"]
    with following(http, f"/requests/{running}/events") as events:
        assert [event.kind for event in events] == kinds
    with following(http, f"/requests/{running}/events", **{"Last-Event-ID": "3-0"}) as events:
        assert [event.kind for event in events] == kinds[5:]
    assert http.get(f"/requests/{running}/trace").raise_for_status().json()["text"] == "It is sunny and"
    shown = http.get(f"/v1/responses/resp_{running}").raise_for_status().json()
    assert (shown["status"], shown["temperature"], shown["max_output_tokens"]) == ("completed", 1.0, 9)


def test_a_request_from_submit_to_its_last_event(http: httpx.Client, writer: WakingWriter) -> None:
    answer = http.post("/requests", json={"prompt": "What is the weather today?", "seed": 7})
    assert answer.status_code == 202
    request_id = answer.json()["request_id"]
    assert answer.json() == {"request_id": request_id, "model": "weather", "events": f"/requests/{request_id}/events"}
    assert http.get(f"/requests/{request_id}").json()["state"] == "queued"
    writer.take()
    with following(http, answer.json()["events"]) as events:
        assert next(events).kind == "queued"
        writer.answer(request_id)
        rest = list(events)
    assert [event.kind for event in rest] == ["started", *["token"] * 6, "completed"]
    assert [event.last_id for event in rest] == ["0-2", "1-0", "2-0", "3-0", "4-0", "5-0", "6-0", "6-1"]
    token = rest[1].json
    assert (token["index"], token["text"], token["token_id"]) == (1, "It", 101)
    assert rest[-1].json["finish_reason"] == "stop"
    assert rest[-1].json["usage"] == {"prompt_tokens": 3, "completion_tokens": 6, "recomputed_tokens": 0}
    status = http.get(f"/requests/{request_id}").json()
    assert (status["state"], status["tokens"], status["attempts"]) == ("completed", 6, 1)
    assert status["created_us"] < status["finished_us"] < status["deadline_us"]


def test_headers_keep_proxies_from_buffering(http: httpx.Client, running: str) -> None:
    with http.stream("GET", f"/requests/{running}/events") as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["cache-control"] == "no-store, no-transform"
        assert response.headers["x-accel-buffering"] == "no"
        assert response.headers["x-request-id"] == running


@pytest.mark.parametrize(
    ("path", "headers"),
    [("?starting_after=2", {}), ("?starting_after=2-0", {}), ("", {"Last-Event-ID": "2-0"})],
)
def test_resume_at_a_token(
    http: httpx.Client, writer: WakingWriter, running: str, path: str, headers: dict[str, str]
) -> None:
    with following(http, f"/requests/{running}/events{path}", **headers) as events:
        assert next(events).last_id == "3-0"
        writer.append(running, " and")
        assert next(events).json["text"] == " and"


@pytest.mark.parametrize("given", ["x", "-1", "1-", "1-0-0", "1.5", "²", "9" * 40, "01", " 1"])
def test_a_malformed_place_is_never_a_full_replay(http: httpx.Client, running: str, given: str) -> None:
    answer = http.get(f"/requests/{running}/events", params={"starting_after": given})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "starting_after"
    if given.isascii() and given == given.strip():
        answer = http.get(f"/requests/{running}/events", headers={"Last-Event-ID": given})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "Last-Event-ID")


def test_behind_the_end_of_the_stream_is_gone(http: httpx.Client, running: str) -> None:
    answer = http.get(f"/requests/{running}/events?starting_after=9")
    assert answer.status_code == 410
    assert (answer.json()["error"]["first"], answer.json()["error"]["last"]) == ("0-1", "3-0")


def test_a_trimmed_range_says_what_is_left(
    http: httpx.Client, redis: Redis, writer: WakingWriter, running: str
) -> None:
    redis.xtrim(keys.stream(running), minid="3-0", approximate=False)
    answer = http.get(f"/requests/{running}/events?starting_after=1")
    assert answer.status_code == 410
    assert (answer.json()["error"]["first"], answer.json()["error"]["last"]) == ("3-0", "3-0")
    with following(http, f"/requests/{running}/events?starting_after=2") as events:
        assert next(events).json["text"] == " sunny"


def test_an_expired_stream_is_gone(http: httpx.Client, redis: Redis, running: str) -> None:
    redis.delete(keys.stream(running))
    assert http.get(f"/requests/{running}/events").status_code == 410
    redis.delete(keys.request(running), keys.claimed(WEATHER_QUEUE))
    assert http.get(f"/requests/{running}/events").status_code == 404


def test_a_stream_that_goes_under_its_reader_ends_in_an_error(http: httpx.Client, redis: Redis, running: str) -> None:
    with following(http, f"/requests/{running}/events?starting_after=3") as events:
        redis.delete(*keys.of_request(running), keys.claimed(WEATHER_QUEUE))
        event = next(events)
    assert event.kind == "error"
    assert event.json["error"]["code"] == "stream_gone"


def test_nothing_comes_behind_the_terminal_event(http: httpx.Client, writer: WakingWriter, running: str) -> None:
    """204 stops a browser from reconnecting."""
    writer.finish(running)
    answer = http.get(f"/requests/{running}/events", headers={"Last-Event-ID": "3-1"})
    assert (answer.status_code, answer.content) == (204, b"")


def test_a_lost_announcement_costs_a_sweep_and_no_token(http: httpx.Client, writer: WakingWriter, running: str) -> None:
    with following(http, f"/requests/{running}/events?starting_after=3") as events:
        super(type(writer), writer).append(running, " and")
        assert next(events).json["text"] == " and"


def test_a_client_may_have_seen_more_at_another_gateway(
    gateway: LiveGateway, http: httpx.Client, writer: WakingWriter, running: str
) -> None:
    """Entries that this gateway hasn't read yet aren't reported as gone."""
    with following(http, f"/requests/{running}/events"):
        wait_until(lambda: gateway.readers == 1)
        super(type(writer), writer).append(running, " and")  # unannounced: unread here until the next sweep
        with following(http, f"/requests/{running}/events?starting_after=4") as events:
            writer.append(running, " warm")
            assert next(events).json["text"] == " warm"


@pytest.mark.one_server
def test_readers_share_what_is_read(
    gateway: LiveGateway, http: httpx.Client, redis: Redis, writer: WakingWriter, running: str
) -> None:
    path = f"/requests/{running}/events"
    with following(http, path) as one, following(http, path) as other:
        assert next(one) == next(other)
        wait_until(lambda: gateway.readers == 2)
        assert len(gateway.gateway.hub.feeds) == 1
        before = _calls(redis, "xrange")
        writer.append(running, " and")
        writer.finish(running)
        assert [event.last_id for event in one] == [event.last_id for event in other]
        assert _calls(redis, "xrange") - before < 8  # two or three reads and a sweep, however many readers
    wait_until(lambda: not gateway.gateway.hub.feeds)


def _calls(redis: Redis, command: str) -> int:
    stats: Any = redis.info("commandstats")
    return int(stats[f"cmdstat_{command}"]["calls"])


def test_cancel(http: httpx.Client, running: str) -> None:
    with following(http, f"/requests/{running}/events?starting_after=3") as events:
        answer = http.post(f"/requests/{running}/cancel")
        assert (answer.status_code, answer.json()["state"]) == (200, "cancelled")
        assert next(events).kind == "cancelled"
    assert http.post(f"/requests/{running}/cancel").json()["state"] == "cancelled"


def test_a_deadline_passes_with_no_worker_there(http: httpx.Client) -> None:
    request_id = http.post("/requests", json={"prompt": "x", "deadline_s": 0.2}).json()["request_id"]
    with following(http, f"/requests/{request_id}/events") as events:
        assert [event.kind for event in events] == ["queued", "expired"]


def test_a_failure_is_told(http: httpx.Client, writer: WakingWriter, running: str) -> None:
    writer.finish(running, End("failed", "error", code="prompt_too_long", message="too long"))
    status = http.get(f"/requests/{running}").json()
    assert status["error"] == {"code": "prompt_too_long", "message": "too long"}


def test_trace_is_the_commands_own(http: httpx.Client, writer: WakingWriter, running: str) -> None:
    writer.finish(running)
    trace = http.get(f"/requests/{running}/trace").json()
    assert [stage["name"] for stage in trace["stages"]] == [
        "Input text",
        "Tokenization",
        "Model generation",
        "Output assembly",
    ]
    assert trace["layers"] == 5
    assert trace["latency"]["ttft_ms"] is not None


def test_the_same_idempotency_key_attaches(http: httpx.Client) -> None:
    body, headers = {"prompt": "x"}, {"Idempotency-Key": "k1"}
    first = http.post("/requests", json=body, headers=headers).json()
    assert http.post("/requests", json=body, headers=headers).json() == first
    assert http.post("/requests", json={**body, "idempotency_key": "k1"}).json() == first
    other = http.post("/requests", json={"prompt": "y"}, headers=headers)
    assert (other.status_code, other.json()["error"]["code"]) == (422, "idempotency_conflict")


def test_any_gateway_goes_on_with_any_request(
    make_gateway: MakeGateway, http: httpx.Client, writer: WakingWriter, running: str
) -> None:
    with make_gateway().client() as other, following(other, f"/requests/{running}/events?starting_after=1") as events:
        assert [next(events).json["text"] for _ in range(2)] == [" is", " sunny"]
        writer.append(running, " and")
        assert next(events).json["text"] == " and"


def test_bad_input_names_field_and_limit(http: httpx.Client, redis: Redis) -> None:
    answer = http.post("/requests", json={"prompt": "x", "top_k": 2**31})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["param"], error["limit"]) == ("top_k", 2**31 - 1)
    assert not redis.keys("tokenrelay:{*")


@pytest.mark.parametrize("sent", [b"{", b"[]", b"1", b"null", b"\xff", b"[" * 100_000, b""])
def test_what_is_no_json_object_is_refused(http: httpx.Client, sent: bytes) -> None:
    answer = http.post("/requests", content=sent, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"]


def test_parsing_of_events_follows_the_rules() -> None:
    assert [event.data for event in parse(": hi\n\ndata: a\ndata: b\n\nid: 1\n\ndata:c\r\n\r\n")] == ["a\nb", "c"]
