"""What models write, by format. `reference.py` cuts it into tokens, and asks vLLM's parsers."""

from __future__ import annotations

from typing import Final, NamedTuple


class Output(NamedTuple):
    """An answer's whole text, special tokens included; the formats that its model writes."""

    tool_parser: str | None
    reasoning_parser: str | None
    text: str


_OSLO: Final = '{"name": "get_weather", "arguments": {"city": "Oslo"}}'
_UMLAUT: Final = '{"name": "get_weather", "arguments": {"city": "Køln 🌧️", "days": [1, 2.5e3, -0], "deep": {"a": null}}}'
_SWAPPED: Final = '{"arguments": {"city": "Oslo", "note": "a \\"quoted\\" {brace}"}, "name": "get_weather"}'
_EMPTY: Final = '{"name": "get_time", "arguments": {}}'

HERMES: Final = (
    "Hello, nothing to call here.",
    "a < b and <b>bold</b> and <tool_box>",
    f"<tool_call>\n{_OSLO}\n</tool_call>",
    f"I'll look it up.\n<tool_call>\n{_OSLO}\n</tool_call>\n<tool_call>\n{_UMLAUT}\n</tool_call>",
    f"<tool_call>{_SWAPPED}</tool_call><tool_call>{_EMPTY}</tool_call>",
    f"<tool_call>\n{_EMPTY}",
    '<tool_call>\n{"name": "get_weather", "arguments": {"city": Oslo',
    "<tool_call>\nget_weather(city='Oslo')\n</tool_call>",
    '<tool_call>\n{"name": "get_weather"}\n</tool_call>',
    '<tool_call>\n{"arguments": {"city": "Oslo"}}\n</tool_call>',
    '<tool_call>\n["get_weather", {}]\n</tool_call>',
    "What does <tool_call> mean?",
)
_LLAMA_OSLO: Final = '{"name": "get_weather", "parameters": {"city": "Oslo"}}'
_LLAMA_UMLAUT: Final = '{"type": "function", "name": "get_weather", "parameters": {"city": "Køln 🌧️", "n": [1, [2]]}}'
LLAMA: Final = (
    "Just an answer.",
    _LLAMA_OSLO,
    f"<|python_tag|>{_LLAMA_OSLO}",
    f"{_LLAMA_OSLO}; {_LLAMA_UMLAUT}",
    f"<|python_tag|>{_LLAMA_UMLAUT};{_OSLO}; {_SWAPPED}",
    '{"city": "Oslo", "degrees": -4}',
    '{"name": "get_weather"}',
    '{"name": "get_weather", "parameters": {"city": Oslo}}',
    "[1, 2, 3]",
)
JSON: Final = (_OSLO, f"[{_OSLO}, {_UMLAUT}]", f"{_SWAPPED}\n{_EMPTY}", '{"a": 1}', "[not JSON", "text")
MISTRAL: Final = (
    "Just an answer.",
    f"[TOOL_CALLS][{_OSLO}]",
    f"[TOOL_CALLS] [{_OSLO}, {_UMLAUT}]",
    f"Let me see.[TOOL_CALLS][{_SWAPPED}]",
    "[TOOL_CALLS]no call at all",
)
MISTRAL_11: Final = (
    "Just an answer.",
    '[TOOL_CALLS]get_weather[ARGS]{"city": "Oslo"}',
    '[TOOL_CALLS]get_weather{"city": "Køln 🌧️", "days": [1, 2]}',
    'Let me see.[TOOL_CALLS]get_weather[ARGS]{"city": "a }{ b"}[TOOL_CALLS]get_time[ARGS]{}',
)
THINK: Final = (
    "<think>\nThe user asks for the weather.\n</think>\n\nIt is sunny.",
    "<think>Short</think>Answer",
    "<think>\nNever ends",
    f"<think>\nI have to call it.\n</think>\n\n<tool_call>\n{_OSLO}\n</tool_call>",
)
_START: Final = "<|start|>assistant"
HARMONY: Final = (
    "<|channel|>final<|message|>It is sunny.",
    f"<|channel|>analysis<|message|>They ask.<|end|>{_START}<|channel|>final<|message|>It is ☀️.<|return|>",
    f"<|channel|>analysis<|message|>Call it.<|end|>{_START}<|channel|>commentary to=functions.get_weather "
    '<|constrain|>json<|message|>{"city": "Oslo"}<|call|>',
    f"<|channel|>commentary<|message|>I'll look.<|end|>{_START} to=functions.get_weather<|channel|>commentary json"
    '<|message|>{"city": "Oslo"}<|call|>',
    "No channel at all.",
    "<|channel|>analysis<|message|>Cut off in the mid",
)

OUTPUTS: Final = (
    *(Output("hermes", None, text) for text in HERMES),
    *(Output("llama3_json", None, text) for text in LLAMA),
    *(Output("json", None, text) for text in JSON),
    *(Output("mistral", None, text) for text in (*MISTRAL, *MISTRAL_11)),
    *(Output("mistral", "mistral", f"[THINK]Hm, {text}[/THINK]{text}") for text in MISTRAL_11[:2]),
    *(Output("hermes", "think", text) for text in THINK),
    *(Output("hermes", "think_begun", text.removeprefix("<think>")) for text in THINK),
    *(Output("harmony", "harmony", text) for text in HARMONY),
)
