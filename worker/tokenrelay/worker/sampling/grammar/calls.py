"""The grammar of an answer that calls tools, in each format that writes its markers as text."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from tokenrelay.worker.sampling.grammar.grammar import Grammar

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_HERMES: Final = ("<tool_call>\n", '{"name": "NAME", "arguments": ', "}\n</tool_call>")
_LLAMA: Final = ("", '{"name": "NAME", "parameters": ', "}")
_JSON: Final = ("", '{"name": "NAME", "arguments": ', "}")
_SHAPES: Final = {"hermes": (*_HERMES, "\n"), "llama3_json": (*_LLAMA, "; "), "json": (*_JSON, "\n")}
"""Format → what a call begins with, its name, its end, and what stands between calls."""
FORMATS: Final = frozenset(_SHAPES)
"""Those whose calls a grammar can write. The markers of the others are special tokens."""
_ANY: Final = "/(.|\\n)*/"


def calls_grammar(options: Mapping[str, Any], tool_parser: str) -> Grammar | None:
    """What the answer must match for the calls that the options ask for; None where it may be anything.

    A choice of a tool, and `required`, make the answer calls from its first token on. `auto` leaves text free up to a
    call, where a tool is strict or calls may not be parallel.
    """
    tools, choice = options["tools"], options["tool_choice"]
    if isinstance(choice, dict):
        tools = [tool for tool in tools if tool["name"] == choice["name"]]
    elif choice == "auto" and options["parallel_tool_calls"] and not any(tool.get("strict") for tool in tools):
        return None
    spec = {
        "format": tool_parser,
        "free": choice == "auto",
        "many": options["parallel_tool_calls"] and not isinstance(choice, dict),
        "tools": [
            [tool["name"], tool.get("parameters", '{"type":"object"}'), tool.get("strict", False)] for tool in tools
        ],
    }
    return Grammar("calls", json.dumps(spec, ensure_ascii=False))


def calls_source(text: str, schema: Callable[[Grammar], str]) -> str:
    """The grammar in Lark, from its first rule on. `schema`: the library's text of a JSON schema's grammar."""
    spec = json.loads(text)
    begin, name, end, between = _SHAPES[spec["format"]]
    calls = " | ".join(f"call{number}" for number in range(len(spec["tools"])))
    lines = [_start(begin, between, free=spec["free"], many=spec["many"]), f"call: {calls}"]
    for number, (tool, parameters, strict) in enumerate(spec["tools"]):
        head, body = json.dumps(name.replace("NAME", tool)), schema(Grammar("json_schema", parameters, strict))
        lines.append(f"call{number}: {head} arguments{number} {json.dumps(end)}")
        lines.append(f"arguments{number}: %json {body}")
    return "\n".join(lines)


def _start(begin: str, between: str, *, free: bool, many: bool) -> str:
    head = f"{json.dumps(begin)} " if begin else ""
    if not free:
        more = f"({json.dumps(between)} {head}call)*" if many else ""
        return f"start: {head}call {more}"
    if not begin:  # what begins as a call is one
        more = f"({json.dumps(between)} call)*" if many else ""
        return f"start: TEXT? | call {more}\nTEXT: /[^{{\\[ \\t\\r\\n](.|\\n)*/"
    # The lazy lexeme ends where a call begins: text alone can't go on through the marker.
    marker, rest = begin.rstrip("\n"), json.dumps(begin[len(begin.rstrip("\n")) :])
    start = "start: (begin block)* TEXT" if many else "start: TEXT | begin block"
    return f"{start}\nblock: {rest} call\nTEXT: {_ANY}\nbegin[lazy]: TEXT {json.dumps(marker)}"
