"""What a call for several choices plans to write: IDs, places and seeds."""

from __future__ import annotations

import hashlib
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenrelay.producer import ProducerSettings, RequestError
from tokenrelay.producer._core.planning import plan_choices, plan_request
from tokenrelay.shared import options
from tokenrelay.shared.request_fields import MAX_SEED
from tokenrelay.shared.wire import keys

SETTINGS: Final = ProducerSettings()
N = st.integers(1, 16)


def seeds(n: int, **submission: Any) -> list[int | None]:
    return [plan.request["seed"] for plan in plan_choices([{"prompt": "x", **submission}], n, SETTINGS)]


@given(seed=st.integers(0, MAX_SEED), fewer=N, more=N)
def test_choice_k_has_the_same_seed_for_every_n_above_k(seed: int, fewer: int, more: int) -> None:
    common = min(fewer, more)
    assert seeds(fewer, seed=seed)[:common] == seeds(more, seed=seed)[:common]
    assert seeds(more, seed=seed)[0] == plan_request({"prompt": "x", "seed": seed}, SETTINGS).request["seed"] == seed


@given(seed=st.integers(0, MAX_SEED))
def test_choices_have_different_seeds_and_those_that_the_wire_says(seed: int) -> None:
    """docs/wire.md: the first 8 bytes of SHA-256 over `SEED:k`, shifted right by 11."""
    found = seeds(16, seed=seed)
    assert len(set(found)) == 16
    for k in range(1, 16):
        digest = hashlib.sha256(b"%d:%d" % (seed, k)).digest()
        assert found[k] == int.from_bytes(digest[:8], "big") >> 11


@given(n=st.integers(2, 16), prompts=st.integers(1, 3))
def test_seeds_that_nobody_gave_follow_from_the_base_id(n: int, prompts: int) -> None:
    """Two producers that write under one idempotency key plan the same ones, prompts included."""
    submissions = [{"prompt": f"x{number}"} for number in range(prompts)]
    first, second = plan_choices(submissions, n, SETTINGS), plan_choices(submissions, n, SETTINGS)
    base = first[0].request_id
    assert [plan.under(base).request["seed"] for plan in second] == [plan.request["seed"] for plan in first]
    drawn = {plan.request["seed"] for plan in (*first, *second)}
    assert len(drawn) == 2 * n * prompts


@given(n=N, prompts=st.integers(1, 16))
def test_ids_and_places(n: int, prompts: int) -> None:
    plans = plan_choices([{"prompt": f"x{number}", "seed": 3} for number in range(prompts)], n, SETTINGS)
    base = plans[0].request_id
    assert [plan.request_id for plan in plans] == [base, *(f"{base}-{index}" for index in range(1, n * prompts))]
    assert all(keys.is_request_id(plan.request_id) and plan.base_id == base for plan in plans)
    assert [plan.request["prompt"] for plan in plans] == [f"x{number}" for number in range(prompts) for _ in range(n)]
    assert [plan.choice for plan in plans] == list(range(n * prompts))
    assert {plan.choices for plan in plans} == {n * prompts}
    per_prompt = [[plan.request["seed"] for plan in plans[start : start + n]] for start in range(0, n * prompts, n)]
    assert all(each == per_prompt[0] for each in per_prompt), "k counts within a prompt"
    assert [options.wire_of(plan.resolved({}).request) for plan in plans] == [1 if n * prompts == 1 else 2] * len(plans)


def test_an_only_choice_is_a_version_1_request_as_before() -> None:
    one, plain = (
        plan_choices([{"prompt": "x", "seed": 3}], 1, SETTINGS)[0],
        plan_request({"prompt": "x", "seed": 3}, SETTINGS),
    )
    assert (one.request, one.body_sha256) == (plain.request, plain.body_sha256)


def test_stored_choices_load_and_nobody_may_give_them() -> None:
    (_, second) = plan_choices([{"prompt": "x"}], 2, SETTINGS)
    loaded = options.load(options.dump(second.resolved({}).request), 2)
    assert (loaded["choices"], loaded["choice"]) == (2, 1)
    for name in ("choices", "choice"):
        with pytest.raises(RequestError, match=name):
            plan_request({"prompt": "x", name: 1}, SETTINGS)


@pytest.mark.parametrize("n", [0, -1, 17, True, 2.0, "2", None])
def test_an_n_out_of_bounds_is_refused_by_name(n: Any) -> None:
    with pytest.raises(RequestError, match="from 1 to 16") as caught:
        plan_choices([{"prompt": "x"}], n, SETTINGS)
    assert (caught.value.field, caught.value.limit) == ("n", 16)


def test_a_call_has_at_most_256_requests() -> None:
    assert len(plan_choices([{"prompt": "x"}] * 16, 16, SETTINGS)) == 256
    with pytest.raises(RequestError, match="17 prompts with 16 choices each; at most 256"):
        plan_choices([{"prompt": "x"}] * 17, 16, SETTINGS)
