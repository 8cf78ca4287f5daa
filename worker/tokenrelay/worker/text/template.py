"""What a chat template can show, and messages as it reads them.

Templates are programs that ignore what they don't know: whether one shows parts, tools or a role is found by rendering.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, cast

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from transformers import PreTrainedTokenizerBase

_PROBE: Final = "probe_of_a_template"
_RESULT: Final = "result_of_a_probe"
_CALL: Final = {"id": "abcdef123", "type": "function", "function": {"name": _PROBE, "arguments": {}}}
_TOOL: Final = {"type": "function", "function": {"name": _PROBE, "description": "", "parameters": {"type": "object"}}}
_WRITTEN: Final = {
    "<|channel|>": "harmony",
    "[TOOL_CALLS]": "mistral",
    "<tool_call>": "hermes",
    "<|python_tag|>": "llama3_json",
}
"""Marker in a template → the format of its calls."""
_REASONING: Final = ("reasoning", "reasoning_content", "thinking")
"""What templates call the reasoning of an earlier answer."""


@dataclass(frozen=True, slots=True)
class Traits:
    """What a chat template shows."""

    parts: bool
    """It shows content that is a list of parts, and none that is text."""
    developer: bool
    """It has the role developer."""
    calls: bool
    """It shows calls of tools, and their results."""
    tools: bool
    """It shows the tools that are offered."""


def traits(tokenizer: PreTrainedTokenizerBase) -> Traits:
    """Of the tokenizer's chat template. Takes six renderings the first time."""
    return _traits(tokenizer, str(tokenizer.chat_template))


@lru_cache(maxsize=16)
def _traits(tokenizer: PreTrainedTokenizerBase, _template: str) -> Traits:
    user = [{"role": "user", "content": _PROBE}]
    parts = not _shows(tokenizer, user, _PROBE) and _shows(tokenizer, _in_parts(user), _PROBE)

    def shows(messages: list[dict[str, Any]], *probes: str, tools: list[dict[str, Any]] | None = None) -> bool:
        return _shows(tokenizer, _in_parts(messages) if parts else messages, *probes, tools=tools)

    question = [{"role": "user", "content": "?"}]
    call = {"role": "assistant", "content": "", "tool_calls": [_CALL]}
    result = {"role": "tool", "content": _RESULT, "tool_call_id": _CALL["id"], "name": _PROBE}
    return Traits(
        parts=parts,
        developer=shows([{"role": "developer", "content": _PROBE}, *question], _PROBE),
        calls=shows([*question, call, result], _PROBE, _RESULT),
        tools=shows(question, _PROBE, tools=[_TOOL]),
    )


def tool_parser_of(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The format in which the chat template writes calls; None where that isn't known, or it shows no tools."""
    if not tokenizer.chat_template or not traits(tokenizer).tools:
        return None
    template = str(tokenizer.get_chat_template(tools=[_TOOL]))
    if "<function=" in template or "<parameter=" in template:
        return None  # calls in XML, which no parser here reads
    written = (name for marker, name in _WRITTEN.items() if marker in template)
    return next(written, "json")


def as_tools(tools: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Tools as templates expect them."""
    shown = []
    for tool in tools:
        parameters = json.loads(tool.get("parameters", '{"type": "object", "properties": {}}'))
        function = {"name": tool["name"], "description": tool.get("description", ""), "parameters": parameters}
        shown.append({"type": "function", "function": function})
    return shown


def _shows(
    tokenizer: PreTrainedTokenizerBase,
    messages: list[dict[str, Any]],
    *probes: str,
    tools: list[dict[str, Any]] | None = None,
) -> bool:
    try:
        text = tokenizer.apply_chat_template(
            cast("list[dict[str, str]]", messages),
            tools=cast("Any", tools),
            tokenize=False,
            add_generation_prompt=messages[-1]["role"] != "assistant",
        )
    except Exception:  # noqa: BLE001  a program of the model's authors, which may raise anything
        return False
    return all(probe in str(text) for probe in probes)


def _in_parts(messages: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [{**message, "content": _parts(message["content"])} for message in messages]


def _parts(content: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": content}] if content else []


def as_template_reads(
    messages: Sequence[Mapping[str, Any]], known: Traits, control: Sequence[str]
) -> list[dict[str, Any]]:
    """The messages with the names and types that templates expect. `control`: tokens that no text may become."""
    shown = [_message(message, known, control) for message in messages]
    names = {call["id"]: call["name"] for message in messages for call in message.get("tool_calls", ())}
    for message in shown:
        if message["role"] == "tool" and message["tool_call_id"] in names:
            message.setdefault("name", names[message["tool_call_id"]])
    return _in_parts(shown) if known.parts else shown


def _message(message: Mapping[str, Any], known: Traits, control: Sequence[str]) -> dict[str, Any]:
    own = ("tool_calls", "reasoning", "refusal")
    shown = {name: value for name, value in message.items() if name not in own}
    if shown["content"] is None:
        shown["content"] = message.get("refusal", "")
    if shown["role"] == "developer" and not known.developer:
        shown["role"] = "system"
    if "reasoning" in message:
        shown |= dict.fromkeys(_REASONING, message["reasoning"])
    if "tool_calls" in message:
        shown["tool_calls"] = [_call(call, control) for call in message["tool_calls"]]
    return shown


def _call(call: Mapping[str, str], control: Sequence[str]) -> dict[str, Any]:
    function = {"name": call["name"], "arguments": _arguments(call["arguments"], control)}
    return {"id": call["id"], "type": "function", "function": function}


def _arguments(text: str, control: Sequence[str]) -> Any:
    """The object that the text says; the text itself where it says none, or has a control token in a name, which
    templates write as it is."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    names = "\0".join(names_in([value]))  # as one text: there may be thousands of names, and of tokens
    forged = any(token in names for token in control)
    return value if isinstance(value, dict) and not forged else text


def names_in(values: Iterable[Any]) -> Iterator[str]:
    """The names of all objects within JSON values."""
    waiting = list(values)
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            yield from value
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value
