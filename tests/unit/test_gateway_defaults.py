"""Every field of OpenAI's and vLLM's requests with its default value, which clients may send explicitly, is a no-op."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, get_type_hints

import pytest
from openai.types import completion_create_params
from openai.types.chat import completion_create_params as chat_create_params
from openai.types.responses import response_create_params

from tests.unit.test_gateway_bodies import LEAST, read
from tokenrelay.gateway.openai.bodies.request_bodies import ChatBody, CompletionBody, ResponseBody
from tokenrelay.gateway.openai.bodies.unsupported import HINTS, NOTES

if TYPE_CHECKING:
    from tokenrelay.gateway.openai.bodies.request_bodies import Common

SAMPLING: Final[dict[str, Any]] = {
    "frequency_penalty": 0.0,
    "ignore_eos": None,
    "include_stop_str_in_output": False,
    "length_penalty": 1.0,
    "logit_bias": {},
    "min_p": None,
    "min_tokens": 0,
    "n": 1,
    "presence_penalty": 0.0,
    "repetition_penalty": None,
    "seed": None,
    "skip_special_tokens": True,
    "spaces_between_special_tokens": True,
    "stop": [],
    "stop_token_ids": [],
    "temperature": None,
    "top_k": None,
    "top_p": None,
    "truncate_prompt_tokens": -1,
    "use_beam_search": False,
    "watermarking": False,
}
VLLM: Final[dict[str, Any]] = {
    "allowed_token_ids": None,
    "bad_words": [],
    "cache_salt": None,
    "ec_transfer_params": None,
    "echo": False,
    "kv_transfer_params": None,
    "logprob_token_ids": None,
    "priority": None,
    "prompt_logprobs": False,
    "repetition_detection": None,
    "request_id": "mine",
    "return_mm_kwargs": None,
    "return_token_ids": False,
    "return_token_offsets": None,
    "return_tokens_as_token_ids": None,
    "routed_experts_prompt_start": None,
    "session_id": None,
    "stream_interval": None,
    "structured_outputs": None,
    "thinking_token_budget": -1,
    "truncation_side": None,
    "vllm_xargs": {},
}
STREAMED: Final[dict[str, Any]] = {"stream": False, "stream_options": None}
TOOLS: Final[dict[str, Any]] = {"tools": [], "tool_choice": {"type": "auto"}, "parallel_tool_calls": True}
DEFAULTS: Final[dict[type[Common], dict[str, Any]]] = {
    ChatBody: {
        **SAMPLING,
        **VLLM,
        **STREAMED,
        **TOOLS,
        "add_generation_prompt": True,
        "add_special_tokens": False,
        "audio": None,
        "chat_template": None,
        "chat_template_kwargs": {},
        "continue_final_message": False,
        "documents": [],
        "function_call": "none",
        "functions": [],
        "include_reasoning": True,
        "logprobs": False,
        "max_completion_tokens": None,
        "max_tokens": None,
        "media_io_kwargs": None,
        "metadata": None,
        "mm_processor_kwargs": None,
        "modalities": "text",
        "moderation": None,
        "prediction": None,
        "prompt_cache_key": None,
        "prompt_cache_options": None,
        "prompt_cache_retention": None,
        "reasoning_effort": None,
        "response_format": {"type": "text"},
        "return_prompt_text": False,
        "safety_identifier": None,
        "service_tier": "auto",
        "store": False,
        "top_logprobs": 0,
        "user": "",
        "verbosity": "medium",
        "web_search_options": None,
    },
    CompletionBody: {
        **SAMPLING,
        **VLLM,
        **STREAMED,
        "add_special_tokens": True,
        "best_of": 1,
        "logprobs": False,
        "max_tokens": None,
        "prompt_embeds": None,
        "response_format": None,
        "suffix": "",
        "user": "",
    },
    ResponseBody: {
        **STREAMED,
        **TOOLS,
        "access_programs": None,
        "background_options": None,
        "image": None,
        "background": False,
        "cache_salt": None,
        "context_management": None,
        "conversation": None,
        "enable_response_messages": False,
        "ignore_eos": None,
        "include": [],
        "include_stop_str_in_output": False,
        "instructions": None,
        "logit_bias": None,
        "max_output_tokens": None,
        "max_tool_calls": None,
        "metadata": {},
        "mm_processor_kwargs": None,
        "moderation": None,
        "previous_input_messages": None,
        "previous_response": None,
        "previous_response_id": None,
        "priority": None,
        "prompt": None,
        "prompt_cache_key": None,
        "prompt_cache_options": None,
        "prompt_cache_retention": None,
        "reasoning": {"effort": None, "summary": None},
        "repetition_penalty": None,
        "request_id": "resp_mine",
        "safety_identifier": None,
        "seed": None,
        "service_tier": "auto",
        "skip_special_tokens": True,
        "stop": [],
        "store": True,
        "structured_outputs": None,
        "temperature": None,
        "text": {"format": {"type": "text"}, "verbosity": "medium"},
        "top_k": None,
        "top_logprobs": 0,
        "top_p": None,
        "truncation": "disabled",
        "user": "",
        "vllm_xargs": {},
    },
}
PARAMS: Final[list[tuple[type[Common], type]]] = [
    (ChatBody, chat_create_params.CompletionCreateParamsBase),
    (CompletionBody, completion_create_params.CompletionCreateParamsBase),
    (ResponseBody, response_create_params.ResponseCreateParamsBase),
]
EACH: Final = [(kind, name) for kind, fields in DEFAULTS.items() for name in fields]


@pytest.mark.parametrize(("kind", "params"), PARAMS)
def test_every_field_of_the_openai_package_is_in_the_table(kind: type[Common], params: type) -> None:
    assert get_type_hints(params).keys() - DEFAULTS[kind].keys() - LEAST[kind].keys() == set()


@pytest.mark.parametrize(("kind", "name"), EACH)
def test_a_default_changes_nothing_and_nothing_is_told_of_it(kind: type[Common], name: str) -> None:
    body = read(kind, **{name: DEFAULTS[kind][name]})
    assert (body.options(), body.ignored, body.unknown) == (read(kind).options(), [], [])


@pytest.mark.parametrize(("kind", "name"), EACH)
def test_null_does_neither(kind: type[Common], name: str) -> None:
    body = read(kind, **{name: None})
    assert (body.options(), body.ignored, body.unknown) == (read(kind).options(), [], [])


@pytest.mark.parametrize("kind", DEFAULTS)
def test_all_of_them_at_once(kind: type[Common]) -> None:
    body = read(kind, **DEFAULTS[kind])
    assert (body.options(), body.ignored, body.unknown) == (read(kind).options(), [], [])


@pytest.mark.parametrize("kind", DEFAULTS)
def test_every_field_of_the_table_is_known(kind: type[Common]) -> None:
    assert DEFAULTS[kind].keys() - {*kind.model_fields, *kind.unsupported, *HINTS, *NOTES} == set()


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        *((kind, "tool_choice", value) for kind in DEFAULTS for value in ("none", "auto", {"type": "none"}, "")),
        *((kind, "modalities", value) for kind in DEFAULTS for value in (["text"], [], "")),
        *((kind, "response_format", value) for kind in DEFAULTS for value in ("text", {"type": "text", "x": 1}, {})),
        *((kind, "parallel_tool_calls", False) for kind in DEFAULTS),
        *((kind, "logprobs", None) for kind in DEFAULTS),
        (ChatBody, "logprobs", "false"),
        (ChatBody, "function_call", "auto"),
        (ResponseBody, "store", False),
    ],
)
def test_other_values_that_change_nothing(kind: type[Common], name: str, value: Any) -> None:
    body = read(kind, **{name: value})
    assert (body.options(), body.ignored) == (read(kind).options(), [])
