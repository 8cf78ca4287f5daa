"""The entries of a request's stream: what they hold and how they are read.

Token N is entry `N-0`, N from 1; event k after token N is `N-k`, so `0-1` is `queued`. Writing is the Lua scripts'
work. This module doesn't know which entry may follow which: that is transitions.py.
"""

from __future__ import annotations

import json
from base64 import b64decode
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, NamedTuple, assert_never

from tokenrelay.shared.errors import ProtocolError

if TYPE_CHECKING:
    from collections.abc import Mapping


class State(StrEnum):
    """What a request can be: the OpenAI Responses API's statuses, and `expired`."""

    QUEUED = "queued"
    IN_PROGRESS = "in_progress"
    COMPLETED = "completed"
    INCOMPLETE = "incomplete"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"

    @property
    def terminal(self) -> bool:
        return self not in (State.QUEUED, State.IN_PROGRESS)

    @property
    def is_answer(self) -> bool:
        """Whether a request in this state has ended in an answer, whole or cut by a limit."""
        match self:
            case State.COMPLETED | State.INCOMPLETE:
                return True
            case State.FAILED | State.CANCELLED | State.EXPIRED | State.QUEUED | State.IN_PROGRESS:
                return False
            case _:
                assert_never(self)


_MOST_DIGITS: Final = 16
_MOST: Final = 2**63

TERMINAL: Final = frozenset(state for state in State if state.terminal)


class EntryId(NamedTuple):
    """`token` tokens were written by then; `event` counts the events behind them, 0 for the token itself."""

    token: int
    event: int

    def __str__(self) -> str:
        return f"{self.token}-{self.event}"


class TokenLogprob(NamedTuple):
    """The natural logarithm of a token's probability, before anything of the draw; -9999 for a probability of 0."""

    token_id: int
    logprob: float
    bytes: bytes
    """What the token writes: part of a character, perhaps."""

    @property
    def text(self) -> str:
        return self.bytes.decode("utf-8", "replace")

    def as_json(self) -> dict[str, Any]:
        """Its fields; `bytes` as numbers."""
        return {"token_id": self.token_id, "logprob": self.logprob, "text": self.text, "bytes": list(self.bytes)}


@dataclass(frozen=True, slots=True)
class Token:
    """Token `index` (from 1) of the answer. `text` is what it releases: it may be empty, or more than its own."""

    index: int
    text: str
    token_id: int
    at_us: int
    """Redis server time of the append, microseconds since 1970."""
    logprobs: tuple[TokenLogprob, ...] = ()
    """The token's own, then those of the likeliest tokens, falling; empty where they weren't asked for."""

    @property
    def entry_id(self) -> EntryId:
        return EntryId(self.index, 0)

    @property
    def kind(self) -> str:
        return "token"


@dataclass(frozen=True, slots=True)
class Queued:
    """The request was accepted; always the first entry."""

    entry_id: EntryId
    at_us: int
    wire: int
    metadata: Mapping[str, Any] = field(default_factory=dict)
    kind: str = "queued"


@dataclass(frozen=True, slots=True)
class Started:
    """The first worker claimed the request."""

    entry_id: EntryId
    at_us: int
    worker: str
    attempt: int
    model: str
    prompt_tokens: int
    seed: int
    tool_parser: str | None = None
    """The format of calls in the answer's text; None where it has none. Likewise:"""
    reasoning_parser: str | None = None
    marks: Mapping[str, str] | None = None
    """Special tokens that are the end of their tokens' text, for the parsers: vocabulary ID in decimal → text."""
    kind: str = "started"


@dataclass(frozen=True, slots=True)
class Migrated:
    """Another attempt took over; token `resumed_at` is the next."""

    entry_id: EntryId
    at_us: int
    worker: str
    attempt: int
    resumed_at: int
    kind: str = "migrated"


@dataclass(frozen=True, slots=True)
class Usage:
    """`recomputed_tokens`: prompt and answer tokens that later attempts computed again, apart from the other two."""

    prompt_tokens: int
    completion_tokens: int
    recomputed_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Ended:
    """The terminal event: always the last entry. `text` is what the tokens still held back."""

    entry_id: EntryId
    at_us: int
    state: State
    finish_reason: str
    text: str
    usage: Usage
    code: str | None = None
    message: str | None = None
    cancelled_by: str | None = None

    @property
    def kind(self) -> str:
        return str(self.state)


@dataclass(frozen=True, slots=True)
class Unknown:
    """An event of a later version that ends nothing. Readers count it and skip it."""

    entry_id: EntryId
    at_us: int
    kind: str


Event = Queued | Started | Migrated | Ended
Entry = Token | Event
AnyEntry = Entry | Unknown
"""What a stream may hold; an Entry is what its readers are given."""


def text(value: object) -> str:
    """A Redis reply's string, whether the client decodes replies or not."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")
    return str(value)


def loggable(value: str) -> str:
    """The string with bytes that aren't UTF-8 as escapes: `text` keeps them, and a log's file can't encode them."""
    return value.encode("utf-8", "backslashreplace").decode()


def whole(value: object) -> int | None:
    """The number that a field of Redis's holds: 0 to 16 digits, as the scripts read it; None for anything else."""
    digits = text(value) if value is not None else ""
    return int(digits) if len(digits) <= _MOST_DIGITS and digits.isascii() and digits.isdecimal() else None


def number(name: str, value: object) -> int:
    """The number that the hash's field `name` holds. Raises ProtocolError."""
    found = whole(value)
    if found is None:
        raise ProtocolError(f"its field {name!r} holds {text(value)!a:.80}, not a number")
    return found


def parse_object(name: str, value: object) -> dict[str, Any]:
    """The JSON object that field `name` holds. Raises ProtocolError."""
    try:
        found = json.loads(text(value))
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise ProtocolError(f"field {name!r} is no JSON object")
    return found


def parse_state(value: object) -> State:
    """The state that a hash holds. Raises ProtocolError for a word that this version doesn't know."""
    try:
        return State(text(value))
    except ValueError:
        raise ProtocolError(
            f"the state {text(value)!a:.80} is unknown here: a newer version may have written it"
        ) from None


class Fields:
    """An entry's fields, read with errors that name the entry and the field."""

    def __init__(self, entry_id: EntryId, fields: Mapping[Any, Any]) -> None:
        self._id = entry_id
        self._fields = {text(name): text(value) for name, value in fields.items()}

    def __contains__(self, name: str) -> bool:
        return name in self._fields

    def text(self, name: str) -> str:
        try:
            return self._fields[name]
        except KeyError:
            raise ProtocolError(f"entry {self._id} has no field {name!r}; it has {sorted(self._fields)}") from None

    def optional(self, name: str) -> str | None:
        return self._fields.get(name)

    def number(self, name: str) -> int:
        value = self.text(name)
        try:
            found = int(value)
        except ValueError:
            found = _MOST
        if not -_MOST < found < _MOST:
            raise ProtocolError(f"entry {self._id}: field {name!r} is {value!a:.80}, not a whole number")
        return found

    def mapping(self, name: str) -> Mapping[str, Any]:
        """The JSON object of a field; empty where the field isn't there."""
        try:
            return parse_object(name, self.optional(name) or "{}")
        except ProtocolError as error:
            raise ProtocolError(f"entry {self._id}: {error.message}") from None


def parse_entry_id(value: object) -> EntryId:
    """`7-0` → EntryId(7, 0). Raises ProtocolError."""
    index, dash, number = text(value).partition("-")
    if not (dash and index.isdecimal() and number.isdecimal()):
        raise ProtocolError(f"{text(value)!r} is not an entry ID such as 7-0")
    return EntryId(int(index), int(number))


def parse_entry(raw_id: object, raw_fields: Mapping[Any, Any]) -> AnyEntry:
    """The entry behind one item of redis-py's XRANGE or XREAD reply. Raises ProtocolError."""
    entry_id = parse_entry_id(raw_id)
    fields = Fields(entry_id, raw_fields)
    if "event" not in fields:
        if entry_id.event != 0:
            raise ProtocolError(f"entry {entry_id} is a token, so its ID must end in -0")
        logprobs = _parse_logprobs(entry_id, fields) if "logprobs" in fields else ()
        return Token(entry_id.token, fields.text("text"), fields.number("token"), fields.number("at_us"), logprobs)
    if entry_id.event == 0:
        raise ProtocolError(f"entry {entry_id} is an event, so its ID can't end in -0")
    return _parse_event(entry_id, fields)


def _parse_logprobs(entry_id: EntryId, fields: Fields) -> tuple[TokenLogprob, ...]:
    try:
        return parse_logprobs(json.loads(fields.text("logprobs")))
    except (ValueError, TypeError, RecursionError):
        raise ProtocolError(f"entry {entry_id}: its logprobs can't be read") from None


def parse_logprobs(items: Any) -> tuple[TokenLogprob, ...]:
    """The log-probabilities at one token, from JSON's values. Raises ValueError, TypeError."""
    return tuple(
        TokenLogprob(int(token_id), float(logprob), b64decode(written, validate=True))
        for token_id, logprob, written in items
    )


def _parse_event(entry_id: EntryId, fields: Fields) -> Event | Unknown:
    kind, at_us = fields.text("event"), fields.number("at_us")
    match kind:
        case "queued":
            return Queued(entry_id, at_us, fields.number("wire"), fields.mapping("metadata"))
        case "started":
            seed, prompt_tokens = fields.number("seed"), fields.number("prompt_tokens")
            worker, model = fields.text("worker"), fields.text("model")
            parsers = (fields.optional("tool_parser"), fields.optional("reasoning_parser"))
            marks = fields.mapping("marks") if "marks" in fields else None
            attempt = fields.number("attempt")
            return Started(entry_id, at_us, worker, attempt, model, prompt_tokens, seed, *parsers, marks)
        case "migrated":
            attempt, resumed_at = fields.number("attempt"), fields.number("resumed_at")
            return Migrated(entry_id, at_us, fields.text("worker"), attempt, resumed_at)
    if kind in TERMINAL:
        return _parse_ended(State(kind), entry_id, fields)
    if "finish_reason" in fields:  # which terminal events have, and no others
        raise ProtocolError(
            f"entry {entry_id}: unknown terminal event {kind!a:.80}: a newer version may have written it"
        )
    return Unknown(entry_id, at_us, kind)


def _parse_ended(state: State, entry_id: EntryId, fields: Fields) -> Ended:
    return Ended(
        entry_id=entry_id,
        at_us=fields.number("at_us"),
        state=state,
        finish_reason=fields.text("finish_reason"),
        text=fields.text("text"),
        usage=Usage(
            fields.number("prompt_tokens"), fields.number("completion_tokens"), fields.number("recomputed_tokens")
        ),
        code=fields.optional("code"),
        message=fields.optional("message"),
        cancelled_by=fields.optional("cancelled_by"),
    )
