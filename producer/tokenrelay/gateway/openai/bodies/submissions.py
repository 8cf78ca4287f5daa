"""Bodies of `POST /requests`: our own options by their own names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from tokenrelay.gateway.openai.bodies.coercion import flag, number, whole
from tokenrelay.gateway.openai.bodies.contents import read_messages
from tokenrelay.gateway.openai.bodies.draw_fields import biases
from tokenrelay.gateway.openai.bodies.request_bodies import callers_index, to_our_range, with_field
from tokenrelay.gateway.openai.bodies.structured_output import read_response_format

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tokenrelay.shared.errors import RequestError


def _whole_numbers(value: Any) -> Any:
    return [whole(each) for each in value] if isinstance(value, list) else value


_SCALARS: Final = {
    "n": whole,
    "max_new_tokens": whole,
    "top_k": whole,
    "seed": whole,
    "temperature": number,
    "top_p": number,
    "deadline_s": number,
    "ignore_eos": flag,
    "repetition_penalty": number,
    "frequency_penalty": number,
    "presence_penalty": number,
    "min_tokens": whole,
    "min_p": number,
    "logit_bias": biases,
    "stop_token_ids": _whole_numbers,
    "include_stop_str_in_output": flag,
    "logprobs": flag,
    "top_logprobs": whole,
    "prompt_token_ids": _whole_numbers,
    "prompt_logprobs": whole,
    "echo": flag,
    "continue_final_message": flag,
    "response_format": read_response_format,
    "parallel_tool_calls": flag,
}


def _unchanged(value: Any) -> Any:
    return value


def read_submission(body: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Parse a body of `POST /requests` to options for `submit`, and the paths of ignored fields. Raises Problem 400.

    All fields here are our own, so an unknown one is a misspelling: it's kept for `submit` to refuse.
    """
    given = {name: value for name, value in body.items() if value is not None}
    parsed = {name: _SCALARS.get(name, _unchanged)(value) for name, value in given.items()}
    read = to_our_range({name: value for name, value in parsed.items() if value is not None})
    if "messages" not in read:
        return read, ()
    conversation = read_messages(read["messages"])
    return {**read, "messages": list(conversation.messages)}, conversation.ignored


def with_callers_field(error: RequestError, body: Mapping[str, Any]) -> RequestError:
    """The error with the field's name as the body has it."""
    ours, _, rest = (error.field or "").partition(".")
    if ours == "stop" and rest and isinstance(texts := body["stop"], list):
        return with_field(error, f"stop.{callers_index(texts, int(rest))}")
    return error
