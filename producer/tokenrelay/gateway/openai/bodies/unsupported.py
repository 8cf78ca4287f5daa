"""Fields of OpenAI and compatible servers that we don't implement, and their no-op values.

Three kinds: fields that would change the answer are refused unless their value is a no-op (`UNSUPPORTED`); fields that
don't change the answer are ignored and reported (`HINTS`); fields about the caller are ignored (`NOTES`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from tokenrelay.gateway.openai.bodies import other_servers
from tokenrelay.gateway.openai.bodies.coercion import number
from tokenrelay.gateway.openai.bodies.no_op_values import equal, is_empty, is_null, is_null_or_false, off, on, one_of
from tokenrelay.shared.options import VERSION_2

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tokenrelay.gateway.openai.bodies.no_op_values import IsNoOp


def _plain_text(value: Any) -> bool:
    """The Responses API's `text` with the plain text format; its `verbosity` is a hint."""
    return is_empty(value) or (isinstance(value, dict) and _plain_format(value.get("format")))


def _plain_format(value: Any) -> bool:
    return is_empty(value) or value == "text" or (isinstance(value, dict) and value.get("type") == "text")


def _no_output(value: Any) -> bool:
    """`include` without logprobs: the other values belong to tools, images and reasoning, which no answer here has."""
    return is_empty(value) or (isinstance(value, list) and "message.output_text.logprobs" not in value)


def _no_tool(value: Any) -> bool:
    """`tool_choice` values that are valid without tools."""
    word = value.get("type") if isinstance(value, dict) else value
    return is_empty(value) or word in ("none", "auto")


UNSUPPORTED: Final[Mapping[str, IsNoOp]] = {
    # OpenAI's
    "audio": is_empty,
    "best_of": equal(1),
    "context_management": is_empty,
    "conversation": is_empty,
    "echo": off,
    "function_call": _no_tool,
    "functions": is_empty,
    "include": _no_output,
    "logprobs": off,
    "modalities": one_of(["text"], "text"),
    "moderation": is_empty,
    "n": equal(1),
    "previous_response_id": is_empty,
    "suffix": is_empty,
    "text": _plain_text,
    "tool_choice": _no_tool,
    "tools": is_empty,
    "top_logprobs": equal(0),
    "truncation": one_of("disabled", "auto"),
    "web_search_options": is_null,
    # OpenAI's, of another endpoint
    "input": is_empty,
    "instructions": is_empty,
    "messages": is_empty,
    "prompt": is_empty,
    # vLLM's and similar servers'
    "add_generation_prompt": on,
    "add_special_tokens": off,
    "allowed_token_ids": is_empty,
    "chat_template": is_empty,
    "chat_template_kwargs": is_empty,
    "continue_final_message": off,
    "detokenize": on,
    "documents": is_empty,
    "enable_response_messages": off,
    "grammar": is_empty,
    "guided_choice": is_empty,
    "guided_grammar": is_empty,
    "guided_json": is_empty,
    "guided_json_object": off,
    "guided_regex": is_empty,
    "json_schema": is_empty,
    "logits_processors": is_empty,
    "mm_processor_kwargs": is_empty,
    "previous_input_messages": is_empty,
    "prompt_embeds": is_empty,
    "prompt_logprobs": is_null_or_false,
    "regex": is_empty,
    "repetition_detection": is_empty,
    "return_prompt_text": off,
    "return_token_ids": off,
    "skip_special_tokens": on,
    "structural_tag": is_empty,
    "truncate_prompt_tokens": equal(-1),
    "use_beam_search": off,
    "vllm_xargs": is_empty,
    "watermarking": off,
    **other_servers.UNSUPPORTED,
    **dict.fromkeys(other_servers.CONTAINERS, lambda value: is_empty(value) or _has_only_no_ops(value)),
}
"""Field → predicate for its no-op values. Any other value would change the answer and is refused."""

PROMPT_UNSUPPORTED: Final[Mapping[str, IsNoOp]] = {
    **UNSUPPORTED,
    "add_special_tokens": on,
    "logprobs": is_null_or_false,
}
"""As UNSUPPORTED, for plain completions, where `logprobs: 0` asks for the drawn tokens' log-probabilities."""

HINTS: Final = frozenset(
    {
        "access_programs",
        "background_options",
        "guided_decoding_backend",
        "guided_whitespace_pattern",
        "image",
        "include_reasoning",
        "kv_transfer_params",
        "max_tool_calls",
        "media_io_kwargs",
        "parallel_tool_calls",
        "prediction",
        "reasoning",
        "reasoning_effort",
        "return_tokens_as_token_ids",
        "service_tier",
        "spaces_between_special_tokens",
        "stream_interval",
        "thinking_token_budget",
        "truncation_side",
        "verbosity",
        *other_servers.HINTS,
    }
)
"""Fields about scheduling, reasoning, images, audio and tools, without effect here."""

_DEFAULTS: Final[Mapping[str, tuple[Any, ...]]] = {
    "include_reasoning": (True, False),
    "parallel_tool_calls": (True, False),
    "reasoning_effort": ("none",),
    "service_tier": ("auto", "default"),
    "spaces_between_special_tokens": (True, False),
    "verbosity": ("medium",),
    "early_stopping": (False,),
    "length_penalty": (1,),
    "thinking_token_budget": (-1,),
}

NOTES: Final = frozenset(
    {
        "cache_salt",
        "client_metadata",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "request_id",
        "safety_identifier",
        "session_id",
        "user",
    }
)
"""Fields that identify the caller or a cache."""


_WINDOWED: Final = "isn't supported here; give repetition_penalty, which sees the whole prompt and answer and no window"

ALTERNATIVES: Final[Mapping[str, str]] = {
    "previous_response_id": "is a field of /v1/responses; use that endpoint",
    "input": "is a field of /v1/responses; use that endpoint",
    "instructions": "is a field of /v1/responses; use that endpoint, or a message with role system",
    "messages": "is a field of /v1/chat/completions; use that endpoint",
    "prompt": "is a field of /v1/completions; use that endpoint",
    "system": "isn't a field here; give a message with role system",
    **dict.fromkeys(("repeat_penalty", "rep_pen"), _WINDOWED),
    "min_new_tokens": "isn't supported here; give min_tokens",
    **{
        f"guided_{name}": f"isn't supported here; give structured_outputs with {name}"
        for name in ("json", "regex", "choice", "grammar", "json_object")
    },
    **{
        name: f"isn't supported here; give {field}"
        for name, field in {
            "grammar": "structured_outputs with grammar, in Lark",
            "grammar_string": "structured_outputs with grammar, in Lark",
            "ebnf": "structured_outputs with grammar, in Lark",
            "regex": "structured_outputs with regex",
            "json_schema": "structured_outputs with json",
            "format": "response_format, or structured_outputs with json",
        }.items()
    },
    **dict.fromkeys(other_servers.CONTAINERS, "isn't read here; move its fields to the top level"),
}
"""Field → advice for its error message, if that isn't simply to leave it out."""


def _has_only_no_ops(value: Any) -> bool:
    """Whether an object of options has only no-op values. Nested containers aren't searched."""
    return isinstance(value, dict) and all(
        is_empty(inner)
        or name in HINTS | NOTES
        or (name in VERSION_2 and number(inner) == VERSION_2.get(name))
        or (name in UNSUPPORTED and name not in other_servers.CONTAINERS and UNSUPPORTED[name](inner))
        for name, inner in value.items()
    )


def is_default(name: str, value: Any) -> bool:
    """Whether a hint has its default value."""
    if isinstance(value, dict):
        return all(map(is_empty, value.values()))
    return is_empty(value) or value in _DEFAULTS.get(name, ())
