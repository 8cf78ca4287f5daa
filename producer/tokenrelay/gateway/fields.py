"""Fields of OpenAI's and of its like's servers that we don't do, and the values of them that ask for nothing.

Three kinds: what would change the answer is refused unless its value asks for nothing (`UNDONE`); what changes no
answer here is ignored and named (`HINTS`); what only says something of the caller is ignored (`NOTES`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from tokenrelay.gateway.coercion import flag, number

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Harmless = Callable[[Any], bool]


def is_nothing(value: Any) -> bool:
    """Whether a value is how clients write that they ask for nothing: null, or empty."""
    return value is None or value in ("", [], {})


def _off(value: Any) -> bool:
    return value is None or flag(value) is False


def _on(value: Any) -> bool:
    return value is None or flag(value) is True


def _absent(value: Any) -> bool:
    return value is None


def _one_of(*words: Any) -> Harmless:
    return lambda value: is_nothing(value) or value in words


def _equal(neutral: float) -> Harmless:
    return lambda value: value is None or (not isinstance(value, bool) and number(value) == neutral)


def _no_bias(value: Any) -> bool:
    return is_nothing(value) or (isinstance(value, dict) and all(map(_equal(0), value.values())))


def _plain_text(value: Any) -> bool:
    """Of the Responses API's `text`: a format that is plain text. `verbosity` is a hint that models here don't take."""
    return is_nothing(value) or (isinstance(value, dict) and _plain_format(value.get("format")))


def _plain_format(value: Any) -> bool:
    return is_nothing(value) or value == {"type": "text"}


def _no_output(value: Any) -> bool:
    """Of `include`: all of it belongs to tools, images and reasoning, which no answer here has; but for logprobs."""
    return is_nothing(value) or (isinstance(value, list) and "message.output_text.logprobs" not in value)


UNDONE: Final[Mapping[str, Harmless]] = {
    # OpenAI's
    "audio": is_nothing,
    "best_of": _equal(1),
    "context_management": is_nothing,
    "conversation": is_nothing,
    "echo": _off,
    "frequency_penalty": _equal(0),
    "function_call": _one_of("none", "auto"),
    "functions": is_nothing,
    "include": _no_output,
    "logit_bias": _no_bias,
    "logprobs": _off,
    "modalities": _one_of(["text"]),
    "moderation": is_nothing,
    "n": _equal(1),
    "presence_penalty": _equal(0),
    "previous_response_id": is_nothing,
    "response_format": _plain_format,
    "suffix": is_nothing,
    "text": _plain_text,
    "tool_choice": _one_of("none", "auto"),
    "tools": is_nothing,
    "top_logprobs": _equal(0),
    "truncation": _one_of("disabled", "auto"),
    "web_search_options": _absent,
    # OpenAI's, of another endpoint than the one that was asked
    "input": is_nothing,
    "instructions": is_nothing,
    "messages": is_nothing,
    "prompt": is_nothing,
    # vLLM's and its like's
    "add_generation_prompt": _on,
    "add_special_tokens": _off,
    "allowed_token_ids": is_nothing,
    "bad_words": is_nothing,
    "chat_template": is_nothing,
    "chat_template_kwargs": is_nothing,
    "continue_final_message": _off,
    "detokenize": _on,
    "documents": is_nothing,
    "enable_response_messages": _off,
    "grammar": is_nothing,
    "guided_choice": is_nothing,
    "guided_grammar": is_nothing,
    "guided_json": is_nothing,
    "guided_json_object": _off,
    "guided_regex": is_nothing,
    "include_stop_str_in_output": _off,
    "json_schema": is_nothing,
    "length_penalty": _equal(1),
    "logits_processors": is_nothing,
    "min_p": _equal(0),
    "min_tokens": _equal(0),
    "mm_processor_kwargs": is_nothing,
    "previous_input_messages": is_nothing,
    "prompt_embeds": is_nothing,
    "prompt_logprobs": _absent,
    "regex": is_nothing,
    "repetition_detection": is_nothing,
    "repetition_penalty": _equal(1),
    "return_prompt_text": _off,
    "return_token_ids": _off,
    "skip_special_tokens": _on,
    "stop_token_ids": is_nothing,
    "structural_tag": is_nothing,
    "structured_outputs": is_nothing,
    "truncate_prompt_tokens": _absent,
    "typical_p": _equal(1),
    "use_beam_search": _off,
    "vllm_xargs": is_nothing,
    "watermarking": _off,
}
"""Field → whether a value of it asks for nothing. Any other one would change the answer, and is refused."""

PROMPT_UNDONE: Final[Mapping[str, Harmless]] = {**UNDONE, "add_special_tokens": _on, "logprobs": _absent}
"""Of plain completions, where `logprobs: 0` asks for those of the tokens themselves."""

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
    }
)
"""How fast, or how models that reason, see, speak or use tools should answer: it changes no answer here."""

_USUAL: Final[Mapping[str, tuple[Any, ...]]] = {
    "include_reasoning": (True, False),
    "parallel_tool_calls": (True, False),
    "reasoning_effort": ("none",),
    "service_tier": ("auto", "default"),
    "spaces_between_special_tokens": (True, False),
    "verbosity": ("medium",),
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
"""They say who asks, and where a cache may look."""


def is_usual(name: str, value: Any) -> bool:
    """Whether a hint asks for nothing but what is the case anyhow."""
    if isinstance(value, dict):
        return all(map(is_nothing, value.values()))
    return is_nothing(value) or value in _USUAL.get(name, ())
