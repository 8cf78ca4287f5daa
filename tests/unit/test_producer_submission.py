"""What a producer refuses before it writes, and what it plans to write. The test kit's Redis is enough for that."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import fakeredis
import pytest
from redis.exceptions import AuthenticationError, ConnectionError, OutOfMemoryError, ResponseError

from tokenrelay.producer import Producer, ProducerSettings, RedisUnusable, RequestError
from tokenrelay.producer._core.drivers import check_redis
from tokenrelay.producer._core.planning import plan_many, plan_request
from tokenrelay.producer._core.steps import Pause, RoundTrip
from tokenrelay.producer._core.submission import Submitter
from tokenrelay.shared.redis.commands import Call
from tokenrelay.shared.wire import keys
from tokenrelay.shared.wire.keys import Plane

if TYPE_CHECKING:
    from collections.abc import Callable

    from tokenrelay.producer import Submission
    from tokenrelay.producer._core.planning import Plan
    from tokenrelay.producer._core.steps import Item, Steps
    from tokenrelay.producer._core.submission import Submitted
    from tokenrelay.shared.redis.commands import Reply

SETTINGS = ProducerSettings(max_prompt_chars=1000, max_new_tokens_limit=100)
BAD: list[tuple[dict[str, Any], str, str]] = [
    ({"prompt": ""}, "prompt", "blank"),
    ({"prompt": " \n\t"}, "prompt", "blank"),
    ({"prompt": "x" * 1001}, "prompt", "1000"),
    ({"prompt": None}, "prompt", "neither"),
    ({"prompt": "x", "messages": [{"role": "user", "content": "x"}]}, "prompt", "both"),
    ({"messages": []}, "messages", "at least 1"),
    ({"messages": [{"role": "wizard", "content": "x"}]}, "messages.0.role", "'user'"),
    ({"messages": [{"role": "user", "content": "x" * 1001}]}, "messages", "1000"),
    ({"messages": [{"role": "user", "content": " "}]}, "messages", "blank"),
    ({"prompt": "x", "max_new_tokens": 0}, "max_new_tokens", "greater than or equal to 1"),
    ({"prompt": "x", "temperature": -0.1}, "temperature", "greater than or equal to 0"),
    ({"prompt": "x", "temperature": float("nan")}, "temperature", "finite"),
    ({"prompt": "x", "temperature": float("inf")}, "temperature", "finite"),
    ({"prompt": "x", "top_p": 0}, "top_p", "greater than 0"),
    ({"prompt": "x", "top_p": 1.01}, "top_p", "less than or equal to 1"),
    ({"prompt": "x", "top_k": -1}, "top_k", "greater than or equal to 0"),
    ({"prompt": "x", "stop": ["a"] * 17}, "stop", "at most 16"),
    ({"prompt": "x", "stop": [""]}, "stop.0", "at least 1"),
    ({"prompt": "half \ud83d"}, "prompt", "lone surrogate"),
    ({"prompt": "x", "stop": ["\udc00"]}, "stop.0", "lone surrogate"),
    ({"prompt": "x", "max_tokens": 5}, "max_tokens", "unknown field"),
    ({"prompt": "x", "seed": -1}, "seed", "greater than or equal to 0"),
    ({"prompt": "x", "seed": 2**63}, "seed", "less than or equal to"),
    ({"prompt": "x", "deadline_s": -1}, "deadline_s", "greater than 0"),
    ({"prompt": "x", "priority": "urgent"}, "priority", "'high'"),
    ({"prompt": "x", "model": "../etc"}, "model", "letters"),
    ({"prompt": "x", "metadata": {"a": "x" * 20_000}}, "metadata", "16384"),
]


@pytest.mark.parametrize(("options", "field", "told"), BAD, ids=[f"{field}-{told}" for _, field, told in BAD])
def test_bad_input_is_refused_by_name_and_nothing_is_written(
    tokenrelay_redis: fakeredis.FakeRedis, options: dict[str, Any], field: str, told: str
) -> None:
    producer = Producer(connection=tokenrelay_redis, settings=SETTINGS)
    with pytest.raises(RequestError) as caught:
        producer.submit(**options)
    assert caught.value.field == field
    assert caught.value.message.startswith(field)
    assert told in caught.value.message
    with pytest.raises(RequestError) as of_batch:
        producer.submit_many(["fine", cast("Submission", options)])
    assert of_batch.value.message.startswith("item 1: ")
    assert of_batch.value.field == field
    assert tokenrelay_redis.keys() == []


def test_a_batch_refuses_what_is_no_item_and_idempotency_keys(tokenrelay_redis: fakeredis.FakeRedis) -> None:
    producer = Producer(connection=tokenrelay_redis, settings=SETTINGS)
    with pytest.raises(RequestError, match=r"item 0: .* int"):
        producer.submit_many([3])  # type: ignore[list-item]
    with pytest.raises(RequestError, match=r"item 0: idempotency_key"):
        producer.submit_many(["x"], idempotency_key="k")
    assert producer.submit_many([]) == []
    assert tokenrelay_redis.keys() == []


def test_a_plain_fakeredis_takes_submit() -> None:
    """Without the kit's scripts: docs/testing.md says so."""
    with fakeredis.FakeRedis() as fake:
        generation = Producer(connection=fake, settings=SETTINGS).submit("x", model="owner/name", priority="high")
        assert fake.lrange("rq:queue:tokenrelay.owner--name.high", 0, -1) == [generation.request_id.encode()]


def test_the_seed_is_drawn_once_and_not_part_of_the_body() -> None:
    first, second = plan_request({"prompt": "x"}, SETTINGS), plan_request({"prompt": "x"}, SETTINGS)
    seeds = [plan.request["seed"] or 0 for plan in (first, second)]
    assert seeds[0] != seeds[1]
    assert all(0 < seed < 2**53 for seed in seeds)
    assert first.body_sha256 == second.body_sha256
    assert plan_request({"prompt": "x", "seed": seeds[0]}, SETTINGS).body_sha256 != first.body_sha256
    assert plan_request({"prompt": "x", "seed": 7}, SETTINGS).request["seed"] == 7
    assert first.request_id != second.request_id


def test_items_go_before_the_common_options_and_settings_name_the_model() -> None:
    settings = ProducerSettings(model="mine")
    plans = plan_many(["a", {"prompt": "b", "top_k": 9}], {"top_k": 5, "priority": "low"}, settings)
    assert [plan.request["top_k"] for plan in plans] == [5, 9]
    assert {plan.queue for plan in plans} == {keys.queue("mine", "low")}
    assert plan_request({"prompt": "c", "model": "other"}, settings).queue == keys.queue("other", "default")


@pytest.mark.parametrize(
    ("info", "told"),
    [
        ({"redis_version": "6.0.16"}, "6.2 or newer"),
        ({"redis_version": "7.0.1", "role": "slave"}, "read-only replica"),
        ({"redis_version": "7.0.1", "role": "master", "maxmemory_policy": "allkeys-lru"}, "noeviction"),
    ],
)
def test_an_unfit_redis_is_refused(info: dict[str, str], told: str) -> None:
    steps = check_redis((Plane.QUEUE,))
    next(steps)
    with pytest.raises(RedisUnusable, match=told):
        steps.send([info])


def test_a_redis_that_hides_its_info_is_trusted() -> None:
    steps = check_redis((Plane.QUEUE,))
    next(steps)
    with pytest.raises(StopIteration):
        steps.send([ResponseError("unknown command 'info'")])


def scripts(item: Item) -> list[str]:
    assert isinstance(item, RoundTrip)
    return [call.script.name for call in item.batch if isinstance(call, Call)]


def submit_one(plan: Plan) -> Steps[Submitted]:
    """Without a look at what the model's workers registered."""
    return Submitter(SETTINGS).submit(replace(plan, not_given=frozenset()))


@pytest.mark.parametrize("submit", [submit_one, lambda plan: Submitter(SETTINGS).write([plan])], ids=["one", "many"])
def test_a_batch_that_was_not_answered_is_sent_again_as_it_was(submit: Callable[[Plan], Steps[object]]) -> None:
    steps = submit(plan_request({"prompt": "x"}, SETTINGS))
    first = next(steps)
    assert scripts(first) == ["create"]
    assert isinstance(steps.throw(ConnectionError("reset by peer")), Pause)
    assert next(steps) == first
    second = steps.send([[b"ATTACHED", b"queued"]])
    assert scripts(second) == ["enqueue"]
    assert isinstance(steps.throw(ConnectionError("reset by peer")), Pause)
    assert next(steps) == second
    with pytest.raises(StopIteration):
        steps.send([[b"ALREADY", b"queued"]])


def test_a_wrong_password_is_not_tried_again() -> None:
    steps = submit_one(plan_request({"prompt": "x"}, SETTINGS))
    next(steps)
    with pytest.raises(AuthenticationError):
        steps.throw(AuthenticationError("WRONGPASS"))


def test_what_was_created_before_redis_was_full_is_cancelled() -> None:
    plans = plan_many(["a", "b", "c"], {}, SETTINGS)
    steps = Submitter(SETTINGS).write(plans)
    next(steps)
    full = OutOfMemoryError("OOM")
    ending: Item | Exception = steps.send([[b"OK", b"1"], [b"OK", b"1"], full])
    ended = []
    for _ in plans[:2]:
        assert isinstance(ending, RoundTrip)
        ended += [item.keys[0] for item in ending.batch if isinstance(item, Call) and item.script.name == "cancel"]
        ending = _sent_or_error(steps, [[b"1:x", b"q", b"1000"], [b"OK", b""]])
    assert ending is full
    assert ended == [keys.request(plan.request_id) for plan in plans[:2]]


def _sent_or_error(steps: Steps[object], replies: list[Reply]) -> Item | Exception:
    try:
        return steps.send(replies)
    except OutOfMemoryError as error:
        return error
