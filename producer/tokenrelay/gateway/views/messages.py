"""An answer's message, and its deltas, in chat completions' shape."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tokenrelay.shared.answers.deltas import CallArguments, CallBegin, CallEnd, Content, Reasoning

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tokenrelay.shared.answers.deltas import AssistantMessage, Delta


def chunk_delta(deltas: Iterable[Delta]) -> dict[str, Any]:
    """The deltas of one entry as a chunk's `delta`; empty where they add nothing."""
    found: dict[str, Any] = {}
    calls: list[dict[str, Any]] = []
    for delta in deltas:
        match delta:
            case Content(text):
                found["content"] = found.get("content", "") + text
            case Reasoning(text):
                found |= _reasoning(found.get("reasoning", "") + text)
            case CallBegin(index, call_id, name):
                calls.append({"index": index, **_call(call_id, name, "")})
            case CallArguments(index, text):
                if not calls or calls[-1]["index"] != index:
                    calls.append({"index": index, "function": {"arguments": ""}})
                calls[-1]["function"]["arguments"] += text
            case CallEnd():
                pass
    return {**found, "tool_calls": calls} if calls else found


def whole_message(said: AssistantMessage) -> dict[str, Any]:
    """A choice's `message`."""
    message: dict[str, Any] = {"role": "assistant", "content": said.content, "refusal": None}
    if said.reasoning:
        message |= _reasoning(said.reasoning)
    if said.tool_calls:
        message["content"] = said.content or None
        message["tool_calls"] = [_call(call.call_id, call.name, call.arguments) for call in said.tool_calls]
    return message


def _reasoning(text: str) -> dict[str, str]:
    """Both names that clients read."""
    return {"reasoning": text, "reasoning_content": text}


def _call(call_id: str, name: str, arguments: str) -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}
