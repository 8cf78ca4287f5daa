"""Key, queue and request names."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tokenrelay.shared.store.scripts import script
from tokenrelay.shared.wire import keys

PART = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,8}", fullmatch=True)
MODEL = (PART | st.builds("{}/{}".format, PART, PART)).filter(keys.is_model_name)


def test_request_ids_are_fresh_and_valid() -> None:
    drawn = [keys.new_request_id() for _ in range(1000)]
    assert len(set(drawn)) == 1000
    assert all(keys.is_request_id(request_id) and len(request_id) >= 22 for request_id in drawn)
    assert not any(request_id.startswith("-") for request_id in drawn), "a shell would take it for an option"


@pytest.mark.parametrize("bad", ["", "a" * 21, "a" * 65, "a" * 21 + " ", "a" * 21 + "}", "a" * 22 + "\n", "é" * 22])
def test_other_strings_are_no_request_ids(bad: str) -> None:
    assert not keys.is_request_id(bad)


@pytest.mark.parametrize("bad", ["", "a/b/c", "/a", "a/", "-a", ".a", "a b", "a--b", "a/b--c", "a\n", "x" * 129])
def test_other_strings_are_no_model_names(bad: str) -> None:
    assert not keys.is_model_name(bad)


@settings(database=None, derandomize=True, max_examples=200)
@given(MODEL, MODEL, st.sampled_from(keys.PRIORITIES), st.sampled_from(keys.PRIORITIES))
def test_queue_names_are_injective(one: str, other: str, priority: str, other_priority: str) -> None:
    assume((one, priority) != (other, other_priority))
    assert keys.queue(one, priority) != keys.queue(other, other_priority)


def test_queue_names_of_near_models_differ() -> None:
    models = filter(keys.is_model_name, ("a/b", "a--b", "a-/b", "a-b", "a/b-", "a.high", "a", "a/high"))
    queues = [queue for model in models for queue in keys.queues(model)]
    assert len(set(queues)) == len(queues)


def test_queues_come_in_the_order_of_service() -> None:
    names = ("tokenrelay.o--m.high", "tokenrelay.o--m.default", "tokenrelay.o--m.low")
    assert keys.queues("o/m") == names


def test_keys_of_a_request_share_their_hash_tag() -> None:
    request_id = keys.new_request_id()
    assert keys.request(request_id) == "tokenrelay:{" + request_id + "}:request"
    assert keys.stream(request_id) == "tokenrelay:{" + request_id + "}:stream"


def test_idempotency_keys_are_hashed() -> None:
    named = [keys.idempotency(key) for key in ("a", "b", "a b", "\n", "x" * 256)]
    assert len(set(named)) == len(named)
    assert all(len(key) == len("tokenrelay:idempotency:") + 64 for key in named)


def test_no_two_kinds_of_key_are_the_same() -> None:
    job = keys.new_request_id()
    named = [keys.request(job), keys.stream(job), keys.claimed(job), keys.idempotency(job), keys.WAKE, keys.QUEUED]
    named += [keys.rq_job(job), keys.rq_dependents(job), keys.rq_results(job), keys.rq_executions(job)]
    named += [keys.rq_execution(job, job), keys.rq_queue(job), keys.rq_worker(job), keys.rq_worker_executions(job)]
    named += [keys.rq_workers(job), *(keys.rq_registry(kind, job) for kind in ("wip", "finished", "failed"))]
    assert all(one != other for one, other in itertools.combinations(named, 2))


def test_the_channel_that_lua_spells_is_the_one_that_workers_hear() -> None:
    assert f"'{keys.ENDED}'" in script("cancel").source(modern=False)
