"""Calls of tools in a conversation, as OpenAI's clients send them back. Submit checks which calls are answered."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from tokenrelay.gateway.http.problems import refuse
from tokenrelay.shared.request_fields import encodable

if TYPE_CHECKING:
    from collections.abc import Mapping

Call = dict[str, str]


def read_text(value: object, path: str) -> str:
    """Raises Problem 400."""
    if not isinstance(value, str):
        refuse(path, "must be text")
    try:
        return encodable(value)
    except ValueError as error:
        refuse(path, str(error))


def read_tool_calls(given: object, path: str) -> list[Call]:
    """A message's `tool_calls`. Raises Problem 400."""
    if not isinstance(given, list):
        refuse(path, "must be a list of calls")
    return [_tool_call(each, f"{path}.{number}") for number, each in enumerate(given)]


def _tool_call(given: object, path: str) -> Call:
    if not isinstance(given, dict):
        refuse(path, "must be an object with id and function")
    kind = given.get("type") or "function"
    if kind != "function":
        refuse(f"{path}.type", f"calls of type {ascii(kind)[:60]} aren't supported", "unsupported_parameter")
    function = given.get("function")
    if not isinstance(function, dict):
        refuse(f"{path}.function", "must be an object with name and arguments")
    return _call(read_text(given.get("id"), f"{path}.id"), function, f"{path}.function")


def read_call_item(given: Mapping[str, Any], path: str) -> Call:
    """An item of type function_call. Raises Problem 400."""
    return _call(read_text(given.get("call_id"), f"{path}.call_id"), given, path)


def _call(call_id: str, given: Mapping[str, Any], path: str) -> Call:
    """Arguments may be an object, as other servers give them."""
    arguments = given.get("arguments")
    if isinstance(arguments, dict):
        arguments = json.dumps(arguments, ensure_ascii=False)
    text = read_text(arguments or "{}", f"{path}.arguments")
    return {"id": call_id, "name": read_text(given.get("name"), f"{path}.name"), "arguments": text}
