"""The draw's options and log-probabilities in request bodies: OpenAI's and vLLM's names, our options."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import pytest

from tests.unit.test_gateway_bodies import LEAST, read, refused
from tokenrelay.gateway.http.problems import Problem
from tokenrelay.gateway.openai.bodies.draw_fields import DrawFields
from tokenrelay.gateway.openai.bodies.request_bodies import ChatBody, CompletionBody, ResponseBody
from tokenrelay.gateway.openai.bodies.submissions import read_submission
from tokenrelay.shared import options

if TYPE_CHECKING:
    from tokenrelay.gateway.openai.bodies.request_bodies import Common

TEXTS: Final = "message.output_text.logprobs"
DRAW: Final[dict[str, tuple[Any, Any]]] = {
    "logit_bias": ({"1": "5", "2": 0}, {"1": 5}),
    "presence_penalty": (0.5, 0.5),
    "frequency_penalty": ("0.5", 0.5),
    "repetition_penalty": (1.1, 1.1),
    "min_p": (0.1, 0.1),
    "min_tokens": (1.0, 1),
    "stop_token_ids": (["2", 3.0], [2, 3]),
    "bad_words": (["x"], ["x"]),
    "include_stop_str_in_output": ("true", True),
}
"""What is sent, and what submit gets."""


@pytest.mark.parametrize("kind", LEAST)
@pytest.mark.parametrize("name", DRAW)
def test_the_draws_options_are_options_of_ours(kind: type[Common], name: str) -> None:
    sent, ours = DRAW[name]
    body = read(kind, **{name: sent})
    assert body.options() == {**read(kind).options(), name: ours}
    assert body.ignored == []
    assert read_submission({"prompt": "x", name: sent})[0][name] == ours


PROMPTS = {"prompt_token_ids", "continue_final_message", "chat_template_kwargs"}
TOOLS = {"tools", "tool_choice", "parallel_tool_calls"}


def test_every_option_of_the_draw_is_a_field() -> None:
    elsewhere = {"logprobs", "top_logprobs", "response_format", "echo", "prompt_logprobs", *PROMPTS, *TOOLS}
    assert DRAW.keys() == options.VERSION_2.keys() - elsewhere == DrawFields.model_fields.keys()


@pytest.mark.parametrize(
    ("kind", "sent", "ours"),
    [
        (ChatBody, {"logprobs": True}, {"logprobs": True}),
        (ChatBody, {"logprobs": "true", "top_logprobs": 2.0}, {"logprobs": True, "top_logprobs": 2}),
        (ChatBody, {"logprobs": False, "top_logprobs": 0}, {}),
        (ChatBody, {"top_logprobs": 2}, {"top_logprobs": 2}),
        (CompletionBody, {"logprobs": 0}, {"logprobs": True, "top_logprobs": 0}),
        (CompletionBody, {"logprobs": "5"}, {"logprobs": True, "top_logprobs": 5}),
        (CompletionBody, {"logprobs": False}, {}),
        (ResponseBody, {"include": [TEXTS]}, {"logprobs": True}),
        (
            ResponseBody,
            {"include": ["reasoning.encrypted_content", TEXTS], "top_logprobs": "2"},
            {"logprobs": True, "top_logprobs": 2},
        ),
        (ResponseBody, {"include": [], "top_logprobs": 0}, {}),
        (ResponseBody, {"include": None, "logprobs": False}, {}),
    ],
)
def test_logprobs_are_asked_for_as_each_endpoint_has_it(
    kind: type[Common], sent: dict[str, Any], ours: dict[str, Any]
) -> None:
    assert read(kind, **sent).options() == {**read(kind).options(), **ours}


@pytest.mark.parametrize(
    ("kind", "name", "value", "message"),
    [
        (ResponseBody, "logprobs", True, f'isn\'t a field here; give include: ["{TEXTS}"]'),
        (ChatBody, "include", [TEXTS], "isn't supported here; leave it out"),
        (CompletionBody, "include", [TEXTS], "isn't supported here; leave it out"),
        (CompletionBody, "top_logprobs", 2, "isn't supported here; leave it out"),
    ],
)
def test_another_endpoints_way_to_ask_for_logprobs_is_refused_by_name(
    kind: type[Common], name: str, value: Any, message: str
) -> None:
    problem = refused(kind, **{name: value})
    assert (problem.status, problem.param, problem.code) == (400, name, "unsupported_parameter")
    assert problem.message == f"{name}: {message}"


def test_a_response_has_no_alternatives_without_logprobs() -> None:
    problem = refused(ResponseBody, include="message.output_text.logprobs")
    assert (problem.status, problem.param) == (400, "include")
    assert "must be a list" in problem.message
    with pytest.raises(Problem, match="top_logprobs: needs include") as raised:
        read(ResponseBody, top_logprobs=2).options()
    assert (raised.value.status, raised.value.param) == (400, "top_logprobs")


@pytest.mark.parametrize("kind", LEAST)
@pytest.mark.parametrize("name", ["repeat_penalty", "rep_pen"])
def test_a_penalty_with_a_window_is_refused_with_the_field_that_has_none(kind: type[Common], name: str) -> None:
    problem = refused(kind, **{name: 1.1})
    assert (problem.status, problem.param) == (400, name)
    assert "give repetition_penalty" in problem.message


@pytest.mark.parametrize("biases", [{}, {"5": 0}])
def test_biases_that_change_nothing_are_no_biases(biases: dict[str, float]) -> None:
    submission, _ = read_submission({"prompt": "x", "logit_bias": biases})
    assert options.validate(submission, options.Limits(1000, 1000)).get("logit_bias") is None
