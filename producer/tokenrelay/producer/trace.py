"""The trace of one request: four stages, the prediction layer by layer with Redis timestamps, and latency figures.

Made from the request's hash and the entries of its stream, running, ended or handed over. A producer has no tokenizer:
the texts of the prompt's tokens are those that the worker stored with its first claim, for short prompts.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from enum import StrEnum
from itertools import pairwise
from statistics import mean, median
from typing import TYPE_CHECKING, Any, Final, assert_never

from tokenrelay.producer._core.endings import check_id
from tokenrelay.producer._core.steps import RoundTrip, raise_on_error
from tokenrelay.shared.errors import ProtocolError, RequestNotFound, StreamExpired, unreadable
from tokenrelay.shared.redis.commands import server_time, server_time_us
from tokenrelay.shared.store.record import Field, RequestRecord, look
from tokenrelay.shared.wire import keys
from tokenrelay.shared.wire.answer import Assembler
from tokenrelay.shared.wire.entries import (
    AnyEntry,
    Ended,
    Entry,
    Migrated,
    Queued,
    Started,
    State,
    Token,
    Unknown,
    parse_entry,
    text,
)
from tokenrelay.shared.wire.keys import Plane

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from tokenrelay.producer._core.steps import Steps

FIELDS: Final = (Field.STATE, Field.BODY, Field.PROMPT_IDS, Field.PROMPT_TEXTS)
"""Of the request's hash, what a trace is made from."""


class Kind(StrEnum):
    """The kind of a line in the prediction trace. Numbered lines are layers."""

    QUEUED = "Queued"
    TOKENIZATION = "Tokenization"
    INITIAL = "Initial Token Generation"
    STREAMING = "Streaming Token Generation"
    BATON_PASS = "Baton Pass"
    ASSEMBLY = "Output Assembly"
    FAILED = "Failed"
    CANCELLED = "Cancelled"
    EXPIRED = "Expired"


_LAYERS: Final = (Kind.TOKENIZATION, Kind.INITIAL, Kind.STREAMING, Kind.ASSEMBLY)


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the prediction trace."""

    kind: Kind
    layer: int | None
    """From 1; None for what isn't a layer: queued, a baton pass, an end without an answer."""
    data: str
    token_id: int | None
    at_us: int
    """Redis server time, microseconds since 1970."""
    step_ms: float
    """Since the line before."""


@dataclass(frozen=True, slots=True)
class Stage:
    """One of the four stages. `data` is empty where the request hasn't come to it."""

    name: str
    shape: str
    data: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Latency:
    """A request's times in milliseconds, by Redis's clock; None where it hasn't come to that."""

    queue_wait_ms: float | None
    ttft_ms: float | None
    first_word_ms: float | None
    """From submit to the first token that released a visible character."""
    inter_token_ms: tuple[float, ...]
    total_ms: float | None

    @property
    def mean_inter_token_ms(self) -> float | None:
        return mean(self.inter_token_ms) if self.inter_token_ms else None

    @property
    def median_inter_token_ms(self) -> float | None:
        """0 where a busy worker published most tokens together with others."""
        return median(self.inter_token_ms) if self.inter_token_ms else None

    @property
    def sooner_ms(self) -> float | None:
        """How much earlier than the whole answer its reader had the first word."""
        return None if self.first_word_ms is None or self.total_ms is None else self.total_ms - self.first_word_ms


@dataclass(frozen=True, slots=True)
class Trace:
    """The whole trace. `now_us`: Redis time of the read."""

    request_id: str
    state: State
    model: str | None
    workers: tuple[str, ...]
    """The workers in order of their attempts; a name repeats if the request returned to a worker."""
    stages: tuple[Stage, Stage, Stage, Stage]
    lines: tuple[Line, ...]
    latency: Latency
    now_us: int
    text: str
    finish_reason: str | None
    problem: str | None
    """Why there is no answer: the failure's code and message, who cancelled."""

    @property
    def layers(self) -> int:
        return sum(line.layer is not None for line in self.lines)


def traced(request_id: str) -> Steps[Trace]:
    """The request's trace as it is now. Raises RequestNotFound, StreamExpired, StreamGap, ProtocolError."""
    stream = keys.stream(check_id(request_id))
    # Atomic: a trace may not show a token that its own state hasn't come to.
    held, raw, time = raise_on_error(
        (
            yield RoundTrip(
                [look(request_id, FIELDS), ("XRANGE", stream, "-", "+"), server_time(Plane.TOKEN)], atomic=True
            )
        )
    )
    record = RequestRecord(FIELDS, held)
    if not record.exists:
        raise RequestNotFound(f"no request {request_id}: it never was, or its retention is over", request_id=request_id)
    if not raw:
        raise StreamExpired(f"the stream of request {request_id} is gone", request_id=request_id)
    entries = [parse_entry(*item) for item in raw]
    try:
        return trace_of(request_id, record, entries, server_time_us(time))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise unreadable(request_id, ProtocolError(repr(error))) from None


def trace_of(request_id: str, record: RequestRecord, entries: Iterable[AnyEntry], now_us: int) -> Trace:
    """The trace of a request whose hash is `record` (of FIELDS). Raises StreamGap, ProtocolError."""
    assembler = Assembler(request_id)
    kept = [entry for entry in entries if assembler.receive(entry) and not isinstance(entry, Unknown)]
    claims = [event for event in assembler.events if isinstance(event, Started | Migrated)]
    ended = assembler.ended
    return Trace(
        request_id=request_id,
        state=record.state,
        model=next((event.model for event in claims if isinstance(event, Started)), None),
        workers=tuple(event.worker for event in claims),
        stages=_stages(record, assembler),
        lines=tuple(_lines(kept, assembler)),
        latency=_latency(kept, assembler.tokens),
        now_us=now_us,
        text=assembler.text,
        finish_reason=ended.finish_reason if ended else None,
        problem=_described_end(ended, 0)[1] if ended and not ended.state.is_answer else None,
    )


def as_json(trace: Trace) -> dict[str, Any]:
    """The trace as one JSON object, whole."""
    latency = trace.latency
    derived = {name: getattr(latency, name) for name in ("mean_inter_token_ms", "median_inter_token_ms", "sooner_ms")}
    return {**asdict(trace), "layers": trace.layers, "latency": {**asdict(latency), **derived}}


def _stages(record: RequestRecord, assembler: Assembler) -> tuple[Stage, Stage, Stage, Stage]:
    request: dict[str, Any] = json.loads(text(record.body or "{}"))
    messages = [f"{message['role']}: {_said(message)}" for message in request.get("messages") or ()]
    given = request.get("prompt_token_ids") or ()
    prompt = messages or [request.get("prompt") or " ".join(map(str, given))]
    known: list[int] = json.loads(text(record.prompt_ids or "[]"))
    tokens, texts = assembler.tokens, json.loads(text(record.prompt_texts or "[]"))
    prompt_tokens = texts if len(texts) == len(known) else [str(token_id) for token_id in known]
    noun = "token" if prompt_tokens is texts else "token ID"
    assembled = _count(1, "text") if assembler.ended else "not yet"
    return (
        Stage("Input text", _count(len(prompt), "message" if messages else "prompt"), tuple(prompt)),
        Stage("Tokenization", _count(len(known), noun) if known else "not yet", tuple(prompt_tokens)),
        Stage("Model generation", f"{_count(len(tokens), 'token')} streamed", tuple(token.text for token in tokens)),
        Stage("Output assembly", assembled, (assembler.text,) if assembler.ended else ()),
    )


def _said(message: Mapping[str, Any]) -> str:
    """A message's content, and the calls beside it."""
    calls = [f"{call['name']}({call['arguments']})" for call in message.get("tool_calls", ())]
    return " ".join([*([message["content"]] if message["content"] else []), *calls])


def _lines(entries: Sequence[Entry], assembler: Assembler) -> Iterator[Line]:
    layer, before_us = 0, entries[0].at_us
    for entry in entries:
        kind, data = _described(entry, assembler)
        numbered = kind in _LAYERS
        layer += numbered
        token_id = entry.token_id if isinstance(entry, Token) else None
        yield Line(kind, layer if numbered else None, data, token_id, entry.at_us, (entry.at_us - before_us) / 1000)
        before_us = entry.at_us


def _described(entry: Entry, assembler: Assembler) -> tuple[Kind, str]:
    match entry:
        case Queued():
            return Kind.QUEUED, ""
        case Started():
            return Kind.TOKENIZATION, f"1 prompt → {_count(entry.prompt_tokens, 'token')}"
        case Token():
            return (Kind.INITIAL if entry.index == 1 else Kind.STREAMING), entry.text
        case Migrated():
            return Kind.BATON_PASS, f"to {entry.worker}, token {entry.resumed_at}"
        case Ended():
            return _described_end(entry, len(assembler.tokens))


def _described_end(ended: Ended, tokens: int) -> tuple[Kind, str]:
    match ended.state:
        case State.COMPLETED | State.INCOMPLETE:
            return Kind.ASSEMBLY, f"{_count(tokens, 'token')} → 1 text"
        case State.FAILED:
            return Kind.FAILED, f"{ended.code}: {ended.message}"
        case State.CANCELLED:
            return Kind.CANCELLED, f"by {ended.cancelled_by or 'somebody'}"
        case State.EXPIRED:
            return Kind.EXPIRED, "the deadline passed before the first token"
        case State.QUEUED | State.IN_PROGRESS:
            raise ValueError(f"{ended.state} ends no request")
        case _:
            assert_never(ended.state)


def _latency(entries: Sequence[Entry], tokens: Sequence[Token]) -> Latency:
    ended = next((entry.at_us for entry in entries if isinstance(entry, Ended)), None)
    started = next((entry.at_us for entry in entries if isinstance(entry, Started)), None)
    word = next((token.at_us for token in tokens if token.text.strip()), None)

    def since_queued_ms(at_us: int | None) -> float | None:
        return None if at_us is None else (at_us - entries[0].at_us) / 1000

    return Latency(
        queue_wait_ms=since_queued_ms(started),
        ttft_ms=since_queued_ms(tokens[0].at_us if tokens else None),
        first_word_ms=since_queued_ms(word),
        inter_token_ms=tuple((after.at_us - before.at_us) / 1000 for before, after in pairwise(tokens)),
        total_ms=since_queued_ms(ended),
    )


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
