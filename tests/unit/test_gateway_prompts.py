"""Prompts in the bodies of completions and chats: texts, token IDs, echo, and how a chat is rendered."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.test_gateway_bodies import read
from tokenrelay.gateway.http.problems import Problem
from tokenrelay.gateway.openai.bodies.request_bodies import ChatBody, CompletionBody


@pytest.mark.parametrize(
    ("given", "option"),
    [
        ("text", {"prompt": "text"}),
        (["text"], {"prompt": "text"}),
        ([5], {"prompt_token_ids": [5]}),
        ([1, 2.0], {"prompt_token_ids": [1, 2]}),
        ([["3", 4]], {"prompt_token_ids": [3, 4]}),
    ],
)
def test_a_prompt_is_text_or_token_ids(given: Any, option: dict[str, Any]) -> None:
    (options,) = read(CompletionBody, prompt=given).submissions()
    assert {name: options.get(name) for name in ("prompt", "prompt_token_ids") if name in options} == option


def test_each_prompt_of_a_list_is_a_request_of_its_own() -> None:
    body = read(CompletionBody, prompt=["a", [1, 2], "b"], temperature=0)
    plain = body.options()
    prompts: list[dict[str, Any]] = [{"prompt": "a"}, {"prompt_token_ids": [1, 2]}, {"prompt": "b"}]
    assert body.submissions() == [{**plain, **prompt} for prompt in prompts]


def test_more_prompts_than_a_call_may_have_are_refused_before_each_becomes_a_request() -> None:
    """A body of 2 MB has room for 500,000: planning them held the event loop, and all its streams, for seconds."""
    read(CompletionBody, prompt=["a"] * 256)
    with pytest.raises(Problem, match="prompt: 257 prompts; at most 256 in all"):
        read(CompletionBody, prompt=["a"] * 257)


def test_an_echo_asks_for_the_prompts_logprobs_where_it_asks_for_any() -> None:
    asked = ("echo", "logprobs", "top_logprobs", "prompt_logprobs", "max_new_tokens")

    def options(**fields: Any) -> list[Any]:
        return [read(CompletionBody, **fields).options().get(name) for name in asked]

    assert options(echo=True, logprobs=1, max_tokens=1) == [True, True, 1, 1, 1]
    assert options(echo=True, max_tokens=5) == [True, None, None, None, 5]
    assert options(logprobs=1, max_tokens=5) == [None, True, 1, None, 5]
    assert options(echo=True, max_tokens=0) == [True, None, None, None, 1]
    assert read(CompletionBody, echo=True, max_tokens=0).prompt_only  # type: ignore[attr-defined]
    assert options(max_tokens=0) == [None, None, None, None, 0], "submit refuses it"


def test_a_chats_rendering_is_asked_for_by_vllms_names() -> None:
    given = {"continue_final_message": True, "add_generation_prompt": False, "chat_template_kwargs": {"b": 1}}
    options = read(ChatBody, **given).options()
    assert {name: options[name] for name in given if name in options} == {
        "continue_final_message": True,
        "chat_template_kwargs": {"b": 1},
    }
