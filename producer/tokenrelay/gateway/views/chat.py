"""The stream as OpenAI's chunks: of a chat completion, or of a plain one."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, Literal

from tokenrelay.gateway.http.problems import OPENAI_CODES
from tokenrelay.gateway.views.sse import encode
from tokenrelay.shared.wire.entries import Ended, Started, State, Token, Usage

if TYPE_CHECKING:
    from tokenrelay.gateway.records.record import Record
    from tokenrelay.shared.wire.answer import Answer
    from tokenrelay.shared.wire.entries import Entry

Api = Literal["chat", "completion"]
ToldUsage = Literal["none", "last", "every"]
"""Which chunks say the usage: none, one of its own behind the last, or each."""
DONE: Final = "[DONE]"
_PREFIXES: Final = {"chat": "chatcmpl-", "completion": "cmpl-"}
_CHUNKS: Final = {"chat": "chat.completion.chunk", "completion": "text_completion"}
_WHOLES: Final = {"chat": "chat.completion", "completion": "text_completion"}


class ChatEncoder:
    """One chunk an entry that says something to an OpenAI client. An entry's last event carries its ID."""

    def __init__(self, record: Record, api: Api, told_usage: ToldUsage) -> None:
        self._api = api
        self._told_usage = told_usage
        self._so_far = Usage(0, 0)
        self._record = record
        self._base = base(record, api, _CHUNKS[api])

    def encode(self, entry: Entry) -> list[bytes]:
        self._count(entry)
        match entry:
            case Started() if self._api == "chat":
                return [encode(self._chunk({"role": "assistant", "content": ""}), entry_id=entry.entry_id)]
            case Token(text=text) if text:
                return [encode(self._chunk(self._piece(text)), entry_id=entry.entry_id)]
            case Ended():
                return self._end(entry)
        return []

    def _count(self, entry: Entry) -> None:
        match entry:
            case Started(prompt_tokens=prompt_tokens):
                self._so_far = Usage(prompt_tokens, 0)
            case Token(index=index):
                self._so_far = replace(self._so_far, completion_tokens=index)

    def _end(self, ended: Ended) -> list[bytes]:
        events = [encode(self._chunk(self._piece(ended.text)))] if ended.text else []
        if ended.state in (State.COMPLETED, State.INCOMPLETE):
            events.append(encode(self._chunk(self._piece(""), finish_reason(ended.finish_reason))))
            if self._told_usage != "none":
                events.append(encode({**self._base, "choices": [], "usage": usage(ended.usage)}))
        else:
            events.append(encode({"error": ending(self._record, ended)}))
        return [*events, encode(DONE, entry_id=ended.entry_id)]

    def _piece(self, text: str) -> dict[str, str]:
        if self._api == "completion":
            return {"text": text}
        return {"content": text} if text else {}

    def _chunk(self, piece: dict[str, str], finished: str | None = None) -> dict[str, Any]:
        told = {"delta": piece} if self._api == "chat" else piece
        choice = {"index": 0, **told, "logprobs": None, "finish_reason": finished}
        chunk = {**self._base, "choices": [choice]}
        if self._told_usage == "none":
            return chunk
        return {**chunk, "usage": usage(self._so_far) if self._told_usage == "every" else None}


def base(record: Record, api: Api, kind: str) -> dict[str, Any]:
    """What every chunk and the whole have in common; from the request alone, so the same on every gateway."""
    return {
        "id": _PREFIXES[api] + record.request_id,
        "object": kind,
        "created": (record.created_us or 0) // 1_000_000,
        "model": record.model,
        "system_fingerprint": None,
    }


def whole(record: Record, api: Api, answer: Answer) -> dict[str, Any]:
    """The answer in one piece."""
    said: dict[str, Any] = {"text": answer.text}
    if api == "chat":
        said = {"message": {"role": "assistant", "content": answer.text, "refusal": None}}
    choice = {
        "index": 0,
        **said,
        "logprobs": None,
        "finish_reason": "stop" if answer.finish_reason == "stop" else "length",
    }
    return {**base(record, api, _WHOLES[api]), "choices": [choice], "usage": usage(answer.usage)}


def finish_reason(ours: str) -> str:
    """OpenAI's word. A deadline cuts an answer short as a budget does."""
    return "stop" if ours == "stop" else "length"


def usage(used: Usage) -> dict[str, int]:
    """OpenAI's usage of chat and plain completions."""
    return {
        "prompt_tokens": used.prompt_tokens,
        "completion_tokens": used.completion_tokens,
        "total_tokens": used.prompt_tokens + used.completion_tokens,
    }


def ending(record: Record, ended: Ended) -> dict[str, Any]:
    """Why there is no answer, as an error of OpenAI's."""
    match ended.state:
        case State.CANCELLED:
            code, message = "cancelled", f"the request was cancelled by {ended.cancelled_by or 'somebody'}"
        case State.EXPIRED:
            code, message = "expired", "no token came before the request's deadline"
        case _:
            code, message = ended.code or "failed", ended.message or "the request failed"
    if not is_callers_fault(ended):
        return {"message": message, "type": "server_error", "param": None, "code": code}
    param = _PARAMS.get(record.mark.api, "messages") if CALLERS_FAULTS[code] else None
    return {"message": message, "type": "invalid_request_error", "param": param, "code": CALLERS_FAULTS[code] or code}


def is_callers_fault(ended: Ended) -> bool:
    """Whether the request failed for what it asks: one that only the worker can see, and a new try won't change."""
    return ended.state is State.FAILED and ended.code in CALLERS_FAULTS


CALLERS_FAULTS: Final = {
    **OPENAI_CODES,
    "control_token": "control_token",
    "invalid_request": None,
}
"""Codes of such failures → OpenAI's code, where it's the prompt that is at fault."""
_PARAMS: Final = {"chat": "messages", "completion": "prompt", "responses": "input"}
