"""A request's hash: which fields it has, and the one reader of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from tokenrelay.shared.wire import keys
from tokenrelay.shared.wire.entries import State, number, parse_object, parse_state, text, whole

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenrelay.shared.redis.commands import Command


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


def look(request_id: str, fields: Sequence[str]) -> Command:
    """The command that reads these fields; RequestRecord(fields, reply) is what it gives."""
    return ("HMGET", keys.request(request_id), *fields)


class RequestRecord:
    """What a request's hash holds, of the fields that were asked for. A field is read when it's asked for.

    Properties raise ProtocolError for a value that can't be read, such as a state that a newer version wrote; KeyError
    for a field that wasn't asked for.
    """

    __slots__ = ("_found",)

    def __init__(self, fields: Sequence[str], reply: Sequence[Any]) -> None:
        self._found: dict[str, Any] = dict(zip(fields, reply, strict=True))

    def has(self, field: str) -> bool:
        """Whether the hash has the field."""
        return self._found[field] is not None

    @property
    def exists(self) -> bool:
        """Whether the hash is there. Its state was asked for: every request has one."""
        return self.has(Field.STATE)

    @property
    def state(self) -> State:
        return parse_state(self._found[Field.STATE])

    @property
    def wire(self) -> str:
        """The lowest version of the protocol that a worker must know to serve it."""
        return text(self._found[Field.WIRE] or "")

    @property
    def tokens(self) -> int:
        """How many tokens the stream has."""
        return number(Field.NEXT, self._found[Field.NEXT]) - 1

    @property
    def attempts(self) -> int:
        return number(Field.ATTEMPT, self._found[Field.ATTEMPT])

    @property
    def deadline_us(self) -> int:
        return number(Field.DEADLINE_US, self._found[Field.DEADLINE_US])

    @property
    def owned(self) -> bool:
        """Whether an attempt may write."""
        return bool(self._found[Field.FENCE])

    @property
    def lease_us(self) -> int:
        """Until when the owner's lease holds; 0 where there's none, or none that can be read."""
        return whole(self._found[Field.LEASE_US]) or 0

    @property
    def suspected(self) -> bool:
        """Whether somebody saw the lease run out."""
        return bool(self._found[Field.SUSPECT_US])

    @property
    def crashes(self) -> int:
        return whole(self._found[Field.CRASHES]) or 0

    @property
    def queue(self) -> str:
        return text(self._found[Field.QUEUE] or "")

    @property
    def owner(self) -> str:
        return text(self._found[Field.OWNER] or "")

    @property
    def cancelled_by(self) -> str | None:
        by = self._found[Field.CANCELLED_BY]
        return text(by) if by else None

    @property
    def metadata(self) -> dict[str, Any]:
        held = self._found[Field.METADATA]
        return parse_object(Field.METADATA, held) if held else {}

    @property
    def body(self) -> Any:
        """The request's JSON, unparsed; None where the hash has none."""
        return self._found[Field.BODY]

    @property
    def body_sha256(self) -> str:
        return text(self._found[Field.BODY_SHA256])

    @property
    def prompt_ids(self) -> Any:
        """JSON, unparsed; None before the first claim."""
        return self._found[Field.PROMPT_IDS]

    @property
    def prompt_texts(self) -> Any:
        """JSON, unparsed; None before the first claim, and for a long prompt."""
        return self._found[Field.PROMPT_TEXTS]

    def retention_s(self, otherwise: int) -> int:
        """How long it's kept once it has ended; `otherwise` where that can't be read."""
        stored_ms = whole(self._found[Field.RETENTION_MS])
        return otherwise if stored_ms is None else max(stored_ms // 1000, 1)
