"""Fields of OpenAI's and of its like's servers that we don't do, and the values of them that ask for nothing.

Three kinds: what would change the answer is refused unless its value asks for nothing (`UNDONE`); what changes no
answer here is ignored and named (`HINTS`); what only says something of the caller is ignored (`NOTES`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from tokenrelay.gateway.openai.bodies import foreign
from tokenrelay.gateway.openai.bodies.harmless import absent, equal, is_nothing, off, on, one_of, unasked

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tokenrelay.gateway.openai.bodies.harmless import Harmless


def _no_bias(value: Any) -> bool:
    return is_nothing(value) or (isinstance(value, dict) and all(map(equal(0), value.values())))


def _plain_text(value: Any) -> bool:
    """Of the Responses API's `text`: a format that is plain text. `verbosity` is a hint that models here don't take."""
    return is_nothing(value) or (isinstance(value, dict) and _plain_format(value.get("format")))


def _plain_format(value: Any) -> bool:
    return is_nothing(value) or value == "text" or (isinstance(value, dict) and value.get("type") == "text")


def _no_output(value: Any) -> bool:
    """Of `include`: all of it belongs to tools, images and reasoning, which no answer here has; but for logprobs."""
    return is_nothing(value) or (isinstance(value, list) and "message.output_text.logprobs" not in value)


def _no_tool(value: Any) -> bool:
    """Of `tool_choice`: what chooses none where there are none."""
    word = value.get("type") if isinstance(value, dict) else value
    return is_nothing(value) or word in ("none", "auto")


UNDONE: Final[Mapping[str, Harmless]] = {
    # OpenAI's
    "audio": is_nothing,
    "best_of": equal(1),
    "context_management": is_nothing,
    "conversation": is_nothing,
    "echo": off,
    "frequency_penalty": equal(0),
    "function_call": _no_tool,
    "functions": is_nothing,
    "include": _no_output,
    "logit_bias": _no_bias,
    "logprobs": off,
    "modalities": one_of(["text"], "text"),
    "moderation": is_nothing,
    "n": equal(1),
    "presence_penalty": equal(0),
    "previous_response_id": is_nothing,
    "response_format": _plain_format,
    "suffix": is_nothing,
    "text": _plain_text,
    "tool_choice": _no_tool,
    "tools": is_nothing,
    "top_logprobs": equal(0),
    "truncation": one_of("disabled", "auto"),
    "web_search_options": absent,
    # OpenAI's, of another endpoint than the one that was asked
    "input": is_nothing,
    "instructions": is_nothing,
    "messages": is_nothing,
    "prompt": is_nothing,
    # vLLM's and its like's
    "add_generation_prompt": on,
    "add_special_tokens": off,
    "allowed_token_ids": is_nothing,
    "bad_words": is_nothing,
    "chat_template": is_nothing,
    "chat_template_kwargs": is_nothing,
    "continue_final_message": off,
    "detokenize": on,
    "documents": is_nothing,
    "enable_response_messages": off,
    "grammar": is_nothing,
    "guided_choice": is_nothing,
    "guided_grammar": is_nothing,
    "guided_json": is_nothing,
    "guided_json_object": off,
    "guided_regex": is_nothing,
    "include_stop_str_in_output": off,
    "json_schema": is_nothing,
    "logits_processors": is_nothing,
    "min_p": equal(0),
    "min_tokens": equal(0),
    "mm_processor_kwargs": is_nothing,
    "previous_input_messages": is_nothing,
    "prompt_embeds": is_nothing,
    "prompt_logprobs": unasked,
    "regex": is_nothing,
    "repetition_detection": is_nothing,
    "repetition_penalty": equal(1),
    "return_prompt_text": off,
    "return_token_ids": off,
    "skip_special_tokens": on,
    "stop_token_ids": is_nothing,
    "structural_tag": is_nothing,
    "structured_outputs": is_nothing,
    "truncate_prompt_tokens": equal(-1),
    "use_beam_search": off,
    "vllm_xargs": is_nothing,
    "watermarking": off,
    **foreign.UNDONE,
    **dict.fromkeys(foreign.CONTAINERS, lambda value: is_nothing(value) or _holds_nothing(value)),
}
"""Field → whether a value of it asks for nothing. Any other one would change the answer, and is refused."""

PROMPT_UNDONE: Final[Mapping[str, Harmless]] = {**UNDONE, "add_special_tokens": on, "logprobs": unasked}
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
        *foreign.HINTS,
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
"""They say who asks, and where a cache may look."""


INSTEAD: Final[Mapping[str, str]] = {
    "previous_response_id": "is a field of /v1/responses; ask there",
    "input": "is a field of /v1/responses; ask there",
    "instructions": "is a field of /v1/responses; ask there, or give a message of the role system",
    "messages": "is a field of /v1/chat/completions; ask there",
    "prompt": "is a field of /v1/completions; ask there",
    "system": "isn't a field here; give a message of the role system",
    **dict.fromkeys(foreign.CONTAINERS, "isn't read here; give the fields that it holds beside model"),
}
"""Field → what to do in place of giving it, where that isn't just to leave it out."""


def _holds_nothing(value: Any) -> bool:
    """Of an object that holds options; one within another isn't looked into, however deep they go."""
    return isinstance(value, dict) and all(
        is_nothing(inner)
        or name in HINTS | NOTES
        or (name in UNDONE and name not in foreign.CONTAINERS and UNDONE[name](inner))
        for name, inner in value.items()
    )


def is_usual(name: str, value: Any) -> bool:
    """Whether a hint asks for nothing but what is the case anyhow."""
    if isinstance(value, dict):
        return all(map(is_nothing, value.values()))
    return is_nothing(value) or value in _USUAL.get(name, ())
