"""The stream as the Responses API's events.

sequence_numbers are dense, equal on every gateway, and unaffected by takeovers, for which there is no event.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final, NamedTuple, assert_never, cast

from tokenrelay.gateway.views.chat import failure_error
from tokenrelay.gateway.views.logprobs import text_logprobs
from tokenrelay.gateway.views.sse import encode
from tokenrelay.shared.wire.entries import Ended, Queued, Started, State, Token

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenrelay.gateway.records.record import Record
    from tokenrelay.shared.response_format import Format
    from tokenrelay.shared.wire.entries import Entry

Logprob = dict[str, Any]
PREFIX: Final = "resp_"
ITEM_PREFIX: Final = "msg_"
_CUT: Final = {"reason": "max_output_tokens"}
"""Also for a deadline: OpenAI has no reason of its own for it."""


class _Words(NamedTuple):
    """OpenAI's words for a state: the event that announces it, the response's status, its item's status."""

    event: str
    status: str
    item: str


def _words(state: State) -> _Words:
    match state:
        case State.QUEUED:
            return _Words("response.created", "queued", "in_progress")
        case State.IN_PROGRESS:
            return _Words("response.in_progress", "in_progress", "in_progress")
        case State.COMPLETED:
            return _Words("response.completed", "completed", "completed")
        case State.INCOMPLETE:
            return _Words("response.incomplete", "incomplete", "incomplete")
        case State.CANCELLED:  # which has no event of its own
            return _Words("response.incomplete", "cancelled", "incomplete")
        case State.FAILED | State.EXPIRED:
            return _Words("response.failed", "failed", "incomplete")
        case _:
            assert_never(state)


class ResponseEncoder:
    """Encodes the stream from its first entry on. An entry's last event has its ID."""

    def __init__(self, record: Record) -> None:
        self._record = record
        self._texts: list[str] = []
        self._logprobs: list[Logprob] = []
        self._sequence = 0
        self._opened = False
        self._item_id = item_id(record)

    def encode(self, entry: Entry) -> list[bytes]:
        match entry:
            case Queued():
                events = [("response.created", {"response": snapshot(self._record, State.QUEUED)})]
            case Started():
                events = self._opening()
            case Token():
                # One event per token, even without text, so that token N is always event N + 3.
                events = [self._delta(entry.text, text_logprobs([entry]))]
            case Ended():
                events = self._closing(entry)
            case _:
                return []
        return [
            self._event(kind, data, entry.entry_id if number == len(events) else None)
            for number, (kind, data) in enumerate(events, 1)
        ]

    def _event(self, kind: str, data: dict[str, Any], entry_id: object) -> bytes:
        numbered = {"type": kind, "sequence_number": self._sequence, **data}
        self._sequence += 1
        return encode(numbered, event=kind, entry_id=entry_id)

    def _opening(self) -> list[tuple[str, dict[str, Any]]]:
        self._opened = True
        item = {**message(self._record, "", "in_progress"), "content": []}
        return [
            ("response.in_progress", {"response": snapshot(self._record, State.IN_PROGRESS)}),
            ("response.output_item.added", {"output_index": 0, "item": item}),
            ("response.content_part.added", {**self._position(), "part": part("")}),
        ]

    def _delta(self, text: str, logprobs: Sequence[Logprob] = ()) -> tuple[str, dict[str, Any]]:
        self._texts.append(text)
        self._logprobs += logprobs
        return "response.output_text.delta", {**self._position(), "delta": text, "logprobs": [*logprobs]}

    def _closing(self, ended: Ended) -> list[tuple[str, dict[str, Any]]]:
        events = self._opening() if ended.text and not self._opened else []
        events += [self._delta(ended.text)] if ended.text else []
        text = "".join(self._texts)
        if self._opened:
            item = message(self._record, text, _words(ended.state).item, self._logprobs)
            events += [
                ("response.output_text.done", {**self._position(), "text": text, "logprobs": self._logprobs}),
                ("response.content_part.done", {**self._position(), "part": part(text, self._logprobs)}),
                ("response.output_item.done", {"output_index": 0, "item": item}),
            ]
        response = snapshot(self._record, ended.state, ended, text, self._logprobs)
        return [*events, (_words(ended.state).event, {"response": response})]

    def _position(self) -> dict[str, Any]:
        return {"item_id": self._item_id, "output_index": 0, "content_index": 0}


def item_id(record: Record) -> str:
    return f"{ITEM_PREFIX}{record.request_id}"


def part(text: str, logprobs: Sequence[Logprob] = ()) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": [*logprobs]}


def message(record: Record, text: str, status: str, logprobs: Sequence[Logprob] = ()) -> dict[str, Any]:
    """The output item that holds the answer."""
    return {
        "id": item_id(record),
        "type": "message",
        "status": status,
        "role": "assistant",
        "content": [part(text, logprobs)],
    }


def snapshot(
    record: Record, state: State, ended: Ended | None = None, text: str = "", logprobs: Sequence[Logprob] = ()
) -> dict[str, Any]:
    """The response object in `state`; `text` is the answer so far, with its tokens' log-probabilities."""
    options, annotation = record.options, record.annotation
    messages = options["messages"] or []
    output = [message(record, text, _words(state).item, logprobs)] if text else []
    return {
        "id": PREFIX + record.request_id,
        "object": "response",
        "created_at": (record.created_us or 0) // 1_000_000,
        "status": _words(state).status,
        "background": annotation.background,
        "error": _error(record, ended) if ended else None,
        "incomplete_details": _CUT if state is State.INCOMPLETE else None,
        "instructions": messages[0]["content"] if annotation.instructions and messages else None,
        "max_output_tokens": None if annotation.unlimited else options["max_new_tokens"],
        "metadata": dict(record.metadata),
        "model": record.model,
        "output": output,
        "parallel_tool_calls": False,
        "previous_response_id": annotation.previous_response_id or None,
        "reasoning": {"effort": None, "summary": None},
        "store": annotation.store,
        "temperature": options["temperature"],
        "text": {"format": _format(cast("Format | None", options.get("response_format")), annotation.format_name)},
        "tool_choice": "auto",
        "tools": [],
        "top_logprobs": options.get("top_logprobs", 0),
        "top_p": options["top_p"],
        "truncation": "disabled",
        "usage": _usage(ended) if ended else None,
    }


def _format(stored: Format | None, name: str) -> dict[str, Any]:
    """What the answer must match."""
    if stored is None:
        return {"type": "text"}
    if stored["type"] == "json_schema":
        schema = json.loads(cast("str", stored["value"]))
        return {"type": "json_schema", "name": name or "schema", "schema": schema, "strict": stored["strict"]}
    return {name: value for name, value in stored.items() if name != "strict"}


def _error(record: Record, ended: Ended) -> dict[str, Any] | None:
    if _words(ended.state).status != "failed":
        return None
    why = failure_error(record, ended)
    return {"code": why["code"], "message": why["message"]}


def _usage(ended: Ended) -> dict[str, Any]:
    used = ended.usage
    return {
        "input_tokens": used.prompt_tokens,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": used.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": used.prompt_tokens + used.completion_tokens,
    }
