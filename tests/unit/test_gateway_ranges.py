"""Values that other servers accept beyond our bounds keep their meaning."""

from __future__ import annotations

from typing import Any

import pytest

from tokenrelay.gateway.openai.bodies.request_bodies import ChatBody
from tokenrelay.gateway.openai.bodies.submissions import read_submission
from tokenrelay.shared.options import Limits, validate

LIMITS = Limits(max_prompt_chars=1000, max_new_tokens=100)
ASKED = {"model": "weather", "messages": [{"role": "user", "content": "x"}]}


def options(**fields: Any) -> dict[str, Any]:
    return ChatBody.model_validate({**ASKED, **fields}).options()


@pytest.mark.parametrize(
    ("fields", "name", "taken"),
    [
        ({"seed": -5}, "seed", 2**63 - 5),
        ({"seed": -(2**63)}, "seed", 0),
        ({"seed": "-5"}, "seed", 2**63 - 5),
        ({"top_p": 0}, "top_k", 1),
        ({"top_p": 0.0, "top_k": 40}, "top_k", 1),
        ({"top_k": -1}, "top_k", 0),
    ],
)
def test_values_in_our_words(fields: dict[str, Any], name: str, taken: object) -> None:
    given = options(**fields)
    assert given[name] == taken
    assert "top_p" not in given
    validate(given, LIMITS)


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"seed": -1}, "seed"),
        ({"max_tokens": -1}, "max_new_tokens"),
        ({"max_completion_tokens": -1.0}, "max_new_tokens"),
        ({"max_tokens": "-1"}, "max_new_tokens"),
    ],
)
def test_minus_one_asks_for_nothing(fields: dict[str, Any], name: str) -> None:
    assert name not in options(**fields)


@pytest.mark.parametrize("fields", [{"seed": -(2**63) - 1}, {"max_tokens": -2}, {"top_p": -0.5}, {"top_k": -2}])
def test_what_nobody_takes_is_left_to_be_refused(fields: dict[str, Any]) -> None:
    (value,) = fields.values()
    assert value in options(**fields).values()


@pytest.mark.parametrize("stop", ["", [], [""], ["", ""]])
def test_an_empty_stop_text_stops_nothing(stop: object) -> None:
    given = options(stop=stop)
    assert not given.get("stop")
    validate(given, LIMITS)
    submitted, _ = read_submission({"prompt": "x", "stop": stop})
    assert not submitted.get("stop")


def test_the_other_stop_texts_stay() -> None:
    assert options(stop=["", "."])["stop"] == ["."]


@pytest.mark.parametrize(
    ("fields", "taken"),
    [
        ({"max_new_tokens": -1}, {}),
        ({"seed": "-1"}, {}),
        ({"seed": -5}, {"seed": 2**63 - 5}),
        ({"top_k": -1.0}, {"top_k": 0}),
        ({"top_p": 0}, {"top_k": 1}),
    ],
)
def test_our_own_endpoint_takes_the_same(fields: dict[str, Any], taken: dict[str, Any]) -> None:
    submitted, _ = read_submission({"prompt": "x", **fields})
    assert submitted == {"prompt": "x", **taken}
    validate(submitted, LIMITS)


@pytest.mark.parametrize("fields", [{"seed": []}, {"top_p": False}, {"top_p": "a"}, {"max_new_tokens": None}])
def test_what_is_no_number_is_left_as_it_is(fields: dict[str, Any]) -> None:
    submitted, _ = read_submission({"prompt": "x", **fields})
    assert submitted == {"prompt": "x", **{name: value for name, value in fields.items() if value is not None}}
