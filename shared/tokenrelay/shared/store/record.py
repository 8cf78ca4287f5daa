"""A request's hash: which fields it has, and the one reader of them. Also what every reader of a hash is made of."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from tokenrelay.shared.wire import keys
from tokenrelay.shared.wire.entries import number, parse_object, parse_state, text, whole

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tokenrelay.shared.redis.commands import Command

T = TypeVar("T")


class HashRecord:
    """What a hash holds, of the fields that were asked for."""

    __slots__ = ("_found",)

    def __init__(self, fields: Sequence[str], reply: Sequence[Any]) -> None:
        self._found: dict[str, Any] = dict(zip(fields, reply, strict=True))

    def has(self, field: str) -> bool:
        """Whether the hash has the field."""
        return self._found[field] is not None


class Parsed(Generic[T]):
    """An attribute of a HashRecord: a field, read when it's asked for. KeyError where the field wasn't fetched."""

    def __init__(self, field: str, read: Callable[[Any], T]) -> None:
        self._field = field
        self._read = read

    def __get__(self, record: HashRecord, _: type) -> T:
        return self._read(record._found[self._field])


def text_or_empty(value: Any) -> str:
    return text(value or "")


def text_or_none(value: Any) -> str | None:
    return text(value) if value else None


def whole_or_zero(value: Any) -> int:
    return whole(value) or 0


def _unparsed(value: Any) -> Any:
    return value


class Field:
    """The fields that are read outside the scripts."""

    STATE: Final = "state"
    WIRE: Final = "wire"
    BODY: Final = "request"
    BODY_SHA256: Final = "body_sha256"
    FENCE: Final = "fence"
    ATTEMPT: Final = "attempt"
    CRASHES: Final = "crashes"
    NEXT: Final = "next"
    LEASE_US: Final = "lease_us"
    SUSPECT_US: Final = "suspect_us"
    DEADLINE_US: Final = "deadline_us"
    RETENTION_MS: Final = "retention_ms"
    CANCELLED_BY: Final = "cancelled_by"
    PROMPT_IDS: Final = "prompt_ids"
    PROMPT_TEXTS: Final = "prompt_texts"
    QUEUE: Final = "queue"
    OWNER: Final = "owner"
    METADATA: Final = "metadata"
    EFFECTIVE: Final = "effective"
    PROMPT_LOGPROBS: Final = "prompt_logprobs"


def look(request_id: str, fields: Sequence[str]) -> Command:
    """The command that reads these fields; RequestRecord(fields, reply) is what it gives."""
    return ("HMGET", keys.request(request_id), *fields)


class RequestRecord(HashRecord):
    """What a request's hash holds, of the fields that were asked for.

    Attributes raise ProtocolError for a value that can't be read, such as a state that a newer version wrote.
    """

    __slots__ = ()

    state = Parsed(Field.STATE, parse_state)
    wire = Parsed(Field.WIRE, text_or_empty)
    """The lowest version of the protocol that a worker must know to serve it."""
    tokens = Parsed(Field.NEXT, lambda value: number(Field.NEXT, value) - 1)
    """How many tokens the stream has."""
    attempts = Parsed(Field.ATTEMPT, partial(number, Field.ATTEMPT))
    deadline_us = Parsed(Field.DEADLINE_US, partial(number, Field.DEADLINE_US))
    owned = Parsed(Field.FENCE, bool)
    """Whether an attempt may write."""
    lease_us = Parsed(Field.LEASE_US, whole_or_zero)
    """Until when the owner's lease holds; 0 where there's none, or none that can be read."""
    suspected = Parsed(Field.SUSPECT_US, bool)
    """Whether somebody saw the lease run out."""
    crashes = Parsed(Field.CRASHES, whole_or_zero)
    queue = Parsed(Field.QUEUE, text_or_empty)
    owner = Parsed(Field.OWNER, text_or_empty)
    cancelled_by = Parsed(Field.CANCELLED_BY, text_or_none)
    metadata = Parsed(Field.METADATA, lambda value: parse_object(Field.METADATA, value) if value else {})
    body = Parsed(Field.BODY, _unparsed)
    """The request's JSON; None where the hash has none."""
    body_sha256 = Parsed(Field.BODY_SHA256, text)
    prompt_ids = Parsed(Field.PROMPT_IDS, _unparsed)
    """JSON; None before the first claim."""
    prompt_texts = Parsed(Field.PROMPT_TEXTS, _unparsed)
    """JSON; None before the first claim, and for a long prompt."""
    effective = Parsed(Field.EFFECTIVE, text_or_empty)
    """JSON; empty before the first claim, and for a request of wire version 1."""

    prompt_logprobs = Parsed(Field.PROMPT_LOGPROBS, _unparsed)
    """JSON; None where they weren't asked for, and before the first token."""

    @property
    def exists(self) -> bool:
        """Whether the hash is there. Its state was asked for: every request has one."""
        return self.has(Field.STATE)

    def retention_s(self, otherwise: int) -> int:
        """How long it's kept once it has ended; `otherwise` where that can't be read."""
        stored_ms = whole(self._found[Field.RETENTION_MS])
        return otherwise if stored_ms is None else max(stored_ms // 1000, 1)
