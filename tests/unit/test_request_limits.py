"""What a request asks for against what its engine can do: budgets, and the words of the refusals."""

from __future__ import annotations

import re
from dataclasses import fields, replace
from typing import Any, cast

import pytest

from tests.engines import ALL_OPTIONS
from tokenrelay.shared import options
from tokenrelay.shared.errors import RequestError
from tokenrelay.worker.engine.contract import Capabilities
from tokenrelay.worker.sampling.params import DRAW_OPTIONS, SamplingParams
from tokenrelay.worker.serving.limits import NEUTRAL, WORKERS_OWN, token_budget

ABLE = Capabilities(8, 100, 1000, ALL_OPTIONS, device="none", dtype="none")
LIMITS = options.Limits(max_prompt_chars=10_000, max_new_tokens=10_000)
TOO_LONG = (
    "the prompt is too long: this model's maximum context length is 100 tokens, and the prompt has 100; "
    "one at least must be left for the answer"
)
"""LangChain looks for "prompt is too long", litellm for "this model's maximum context length is", pydantic-ai for
"maximum context length"."""


def asked(**chosen: Any) -> options.Submission:
    given = {"prompt": "hi", "model": "counting", "temperature": 0.0, **chosen}
    return options.validate(given, LIMITS)


def test_a_budget_is_cut_to_the_engines_context() -> None:
    assert token_budget(10, 0, asked(max_new_tokens=200), ABLE) == 90
    assert token_budget(10, 0, asked(max_new_tokens=20), ABLE) == 20


def test_a_prompt_without_room_for_a_token_is_refused_in_words_that_clients_know() -> None:
    with pytest.raises(RequestError, match=re.escape(TOO_LONG)) as caught:
        token_budget(100, 0, asked(max_new_tokens=5), ABLE)
    assert (caught.value.code, caught.value.field, caught.value.limit) == ("prompt_too_long", "prompt", 99)


@pytest.mark.parametrize(
    ("option", "value"), [("temperature", 0.7), ("top_k", 5), ("top_p", 0.5), ("ignore_eos", True)]
)
def test_an_option_that_the_engine_lacks_is_refused_where_it_is_asked_for(option: str, value: Any) -> None:
    lacking = replace(ABLE, options=ALL_OPTIONS - {option})
    assert token_budget(10, 0, asked(max_new_tokens=5), lacking) == 5
    assert token_budget(10, 0, asked(max_new_tokens=5, **{option: value}), ABLE) == 5
    with pytest.raises(RequestError, match=f"engine doesn't support {option}") as caught:
        token_budget(10, 0, asked(max_new_tokens=5, **{option: value}), lacking)
    assert (caught.value.code, caught.value.field) == ("unsupported_option", option)


def test_every_option_of_the_draw_is_checked_and_read() -> None:
    """The seed isn't: without it an engine couldn't resume."""
    assert set(NEUTRAL) == DRAW_OPTIONS | {"ignore_eos"} | options.VERSION_2.keys() - WORKERS_OWN
    assert {field.name for field in fields(SamplingParams)} == DRAW_OPTIONS | {"seed"}
    request = asked(temperature=0.5, top_k=3, top_p=0.25, seed=9)
    assert SamplingParams.of(request) == SamplingParams(temperature=0.5, top_k=3, top_p=0.25, seed=9)
    assert SamplingParams.of(cast("options.Submission", {**request, **NEUTRAL})).adjusts is False
    chosen = {
        **request,
        "min_p": 0.1,
        "logit_bias": {"7": -1.5, "3": 2},
        "repetition_penalty": 1.2,
        "frequency_penalty": 0.3,
        "presence_penalty": 0.4,
        "bad_words": ["no"],
        "min_tokens": 5,
        "stop_token_ids": [8, 9],
    }
    expected = SamplingParams(
        0.5, 3, 0.25, 9, 0.1, ((3, 2), (7, -1.5)), 1.2, 0.3, 0.4, ((1, 2),), min_tokens=5, stop_token_ids=(8, 9)
    )
    assert SamplingParams.of(cast("options.Submission", chosen), bad_words=((1, 2),)) == expected


@pytest.mark.parametrize(("option", "value"), [("logit_bias", {"1000": 1.0}), ("stop_token_ids", [5, 1000])])
def test_a_token_id_beyond_the_vocabulary_is_refused(option: str, value: Any) -> None:
    request = cast("options.Submission", {**asked(max_new_tokens=5), option: value})
    with pytest.raises(RequestError, match=f"{option}: 1000 is no token of this model.*0 to 999") as caught:
        token_budget(10, 0, request, ABLE)
    assert (caught.value.field, caught.value.limit) == (option, 999)
