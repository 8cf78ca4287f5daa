"""The stream as OpenAI's chunks of a chat completion or a completion, and the whole completion object."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar, assert_never

from tokenrelay.gateway.http.problems import OPENAI_CODES
from tokenrelay.gateway.views.logprobs import Echo, chat_logprobs, completion_logprobs
from tokenrelay.gateway.views.messages import chunk_delta, whole_message
from tokenrelay.gateway.views.sse import encode
from tokenrelay.shared.wire import keys
from tokenrelay.shared.wire.answer import Answer, DeltaReader
from tokenrelay.shared.wire.entries import Ended, Started, State, Token, Usage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenrelay.gateway.records.record import Record
    from tokenrelay.shared.wire.entries import Entry

Shown = TypeVar("Shown", Ended, Answer)
Api = Literal["chat", "completion"]
UsageChunks = Literal["none", "last", "every"]
"""Which chunks have the usage: none, an extra one after the last, or every one."""
DONE: Final = "[DONE]"
_PREFIXES: Final = {"chat": "chatcmpl-", "completion": "cmpl-"}
_CHUNKS: Final = {"chat": "chat.completion.chunk", "completion": "text_completion"}
_WHOLES: Final = {"chat": "chat.completion", "completion": "text_completion"}


class ChatEncoder:
    """Encodes entries as chunks; entries without an OpenAI equivalent are skipped. An entry's last event has its ID.

    Of several choices the events have no IDs, since a position would need one of each, and their stream's end
    isn't theirs. `record`: the first choice's. `echo`: the prompt, where it's shown first.
    """

    def __init__(
        self,
        record: Record,
        api: Api,
        usage_chunks: UsageChunks,
        index: int | None = None,
        echo: Echo | None = None,
    ) -> None:
        self._index = index
        self._echo = echo
        self._api = api
        self._told_usage = usage_chunks
        self._so_far = Usage(0, 0)
        self._chars = len(echo.text) if echo else 0
        self._record = record
        self._reader: DeltaReader | None = None  # where the answer may have tool calls or reasoning
        self._calls = False
        self._base = base(record, api, _CHUNKS[api])

    def encode(self, entry: Entry) -> list[bytes]:
        self._count(entry)
        match entry:
            case Started() if self._api == "chat":
                if entry.tool_parser or entry.reasoning_parser:
                    self._reader = DeltaReader(keys.choice_id(self._record.request_id, self._index or 0))
                    self._reader.receive(entry)
                return [self._event(self._chunk({"role": "assistant", "content": ""}), entry)]
            case Started() if self._echo is not None:
                return [self._event(self._chunk({"text": self._echo.text}, logprobs=self._echo.logprobs), entry)]
            case Token() if self._reader is not None:
                return self._parsed(self._reader, entry)
            case Token() if (entry.text or entry.logprobs) and not self._record.annotation.prompt_only:
                return [self._event(self._token(entry), entry)]
            case Ended():
                return self._end(entry)
        return []

    def _event(self, chunk: dict[str, Any], entry: Entry) -> bytes:
        return encode(chunk, entry_id=entry.entry_id if self._index is None else None)

    def _count(self, entry: Entry) -> None:
        match entry:
            case Started(prompt_tokens=prompt_tokens):
                self._so_far = Usage(prompt_tokens, 0)
            case Token(index=index) if not self._record.annotation.prompt_only:
                self._so_far = replace(self._so_far, completion_tokens=index)

    def _end(self, ended: Ended) -> list[bytes]:
        ended = shown_end(self._record, ended)
        last = self._last_piece(ended)
        events = [encode(self._chunk(last))] if last else []
        if ended.state.is_answer:
            events.append(encode(self._chunk(self._piece(""), finish_reason(ended.finish_reason, calls=self._calls))))
        if self._index is not None:
            return events
        if not ended.state.is_answer:
            events.append(encode({"error": failure_error(self._record, ended)}))
        elif self._told_usage != "none":
            events.append(encode(usage_chunk(self._record, self._api, ended.usage)))
        return [*events, encode(DONE, entry_id=ended.entry_id)]

    def _token(self, token: Token) -> dict[str, Any]:
        """A token's chunk; where its text is held back, only because of its logprobs."""
        begin, self._chars = self._chars, self._chars + len(token.text)
        if self._api == "chat":
            return self._chunk({"content": token.text}, logprobs=chat_logprobs([token]))
        return self._chunk({"text": token.text}, logprobs=completion_logprobs([token], begin))

    def _parsed(self, reader: DeltaReader, token: Token) -> list[bytes]:
        """A token's chunk, where it adds something or has logprobs."""
        piece, logprobs = chunk_delta(reader.receive(token)), chat_logprobs([token])
        self._calls |= "tool_calls" in piece
        return [self._event(self._chunk(piece, logprobs=logprobs), token)] if piece or logprobs else []

    def _last_piece(self, ended: Ended) -> dict[str, Any]:
        if self._reader is None:
            return self._piece(ended.text) if ended.text else {}
        piece = chunk_delta(self._reader.receive(ended))
        self._calls |= "tool_calls" in piece
        return piece

    def _piece(self, text: str) -> dict[str, str]:
        if self._api == "completion":
            return {"text": text}
        return {"content": text} if text else {}

    def _chunk(
        self, piece: dict[str, Any], finished: str | None = None, logprobs: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        content = {"delta": piece} if self._api == "chat" else piece
        choice = {"index": self._index or 0, **content, "logprobs": logprobs, "finish_reason": finished}
        chunk = {**self._base, "choices": [choice]}
        if self._told_usage == "none":
            return chunk
        return {**chunk, "usage": usage(self._so_far) if self._told_usage == "every" else None}


def base(record: Record, api: Api, kind: str) -> dict[str, Any]:
    """The fields shared by all chunks and the whole object. A function of the request, so equal on every gateway."""
    return {
        "id": _PREFIXES[api] + record.request_id,
        "object": kind,
        "created": (record.created_us or 0) // 1_000_000,
        "model": record.model,
        "system_fingerprint": None,
    }


def usage_chunk(record: Record, api: Api, used: Usage) -> dict[str, Any]:
    """The chunk that has the usage and no choice."""
    return {**base(record, api, _CHUNKS[api]), "choices": [], "usage": usage(used)}


def shown_end(record: Record, end: Shown) -> Shown:
    """The end of a request as it's shown. Where the prompt alone is, a limit of 0 tokens has ended it."""
    if not (record.annotation.prompt_only and end.state.is_answer):
        return end
    used = replace(end.usage, completion_tokens=0)
    if isinstance(end, Answer):
        return replace(end, text="", tokens=(), finish_reason="length", usage=used)
    return replace(end, text="", finish_reason="length", usage=used)


def whole_completion(
    record: Record, api: Api, answers: Sequence[Answer], echoes: Sequence[Echo | None], n: int = 1
) -> dict[str, Any]:
    """The completion object of the answers, `n` for each prompt. `record`: the first one's. `echoes`: of each one the
    prompt that is shown before it."""
    shown = [shown_end(record, answer) for answer in answers]
    choices = [
        _whole_choice(api, index, answer, echo or Echo("", None))
        for index, (answer, echo) in enumerate(zip(shown, echoes, strict=True))
    ]
    used = total_usage([answer.usage for answer in shown], n)
    return {**base(record, api, _WHOLES[api]), "choices": choices, "usage": usage(used)}


def _whole_choice(api: Api, index: int, answer: Answer, echo: Echo) -> dict[str, Any]:
    content: dict[str, Any] = {"text": echo.text + answer.text}
    logprobs: dict[str, Any] | None = echo.before(completion_logprobs(answer.tokens, len(echo.text)))
    calls = api == "chat" and bool(answer.said.tool_calls)
    if api == "chat":
        logprobs = chat_logprobs(answer.tokens)
        content = {"message": whole_message(answer.said)}
    return {
        "index": index,
        **content,
        "logprobs": logprobs,
        "finish_reason": finish_reason(answer.finish_reason, calls=calls),
    }


def total_usage(each: Sequence[Usage], n: int) -> Usage:
    """The usage of a call's requests, `n` for each prompt: each prompt's tokens count once."""
    prompt_tokens = sum(used.prompt_tokens for used in each[::n])
    return Usage(prompt_tokens, sum(used.completion_tokens for used in each))


def finish_reason(ours: str, *, calls: bool = False) -> str:
    """OpenAI's finish reason; a deadline maps to `length`, as a budget does."""
    return ("tool_calls" if calls else "stop") if ours == "stop" else "length"


def usage(used: Usage) -> dict[str, int]:
    """OpenAI's usage object of completions."""
    return {
        "prompt_tokens": used.prompt_tokens,
        "completion_tokens": used.completion_tokens,
        "total_tokens": used.prompt_tokens + used.completion_tokens,
    }


def failure_error(record: Record, ended: Ended) -> dict[str, Any]:
    """The error object of a request without an answer, in OpenAI's shape."""
    match ended.state:
        case State.CANCELLED:
            code, message = "cancelled", f"the request was cancelled by {ended.cancelled_by or 'an unknown caller'}"
        case State.EXPIRED:
            code, message = "expired", "no token came before the request's deadline"
        case State.FAILED:
            code, message = ended.code or "failed", ended.message or "the request failed"
        case State.COMPLETED | State.INCOMPLETE | State.QUEUED | State.IN_PROGRESS:
            raise ValueError(f"a request that is {ended.state} has no error")
        case _:
            assert_never(ended.state)
    if record.choice is not None:
        message = f"choice {record.choice}: {message}"
    if not is_callers_fault(ended):
        return {"message": message, "type": "server_error", "param": None, "code": code}
    param = None
    if code == "invalid_grammar":
        param = "tools" if message.removeprefix(f"choice {record.choice}: ").startswith("tools:") else "response_format"
    if CALLERS_FAULTS[code]:
        param = _PARAMS.get(record.annotation.api, "messages")
    return {"message": message, "type": "invalid_request_error", "param": param, "code": CALLERS_FAULTS[code] or code}


def is_callers_fault(ended: Ended) -> bool:
    """Whether the request failed for a fault of its own that only the worker detects; a retry would fail again."""
    return ended.state is State.FAILED and ended.code in CALLERS_FAULTS


CALLERS_FAULTS: Final = {
    **OPENAI_CODES,
    "control_token": "control_token",
    "grammar_dead_end": None,
    "invalid_grammar": None,
    "invalid_request": None,
    "no_token_left": None,
    "prompt_logprobs_too_large": None,
    "unsupported_option": None,
}
"""Failure code → OpenAI's code if the prompt is at fault, else None."""
_PARAMS: Final = {"chat": "messages", "completion": "prompt", "responses": "input"}
