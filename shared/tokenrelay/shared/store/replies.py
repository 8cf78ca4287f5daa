"""What the token plane's scripts answer: a type for each word, and for each script the union of those that it gives.

Callers match them exhaustively. A word that isn't known here is a ProtocolError of `ScriptCall.parse`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, TypeVar

from tokenrelay.shared.errors import ProtocolError
from tokenrelay.shared.redis.calls import Unusable, by_word, whole_number
from tokenrelay.shared.wire.entries import State, text, whole

if TYPE_CHECKING:
    from collections.abc import Callable

    T = TypeVar("T")
    _Reader = Callable[[Any], T]


@dataclass(frozen=True, slots=True)
class Created:
    """The request and its `queued` event are written."""

    deadline_us: int


@dataclass(frozen=True, slots=True)
class Attached:
    """The same request was there before."""


@dataclass(frozen=True, slots=True)
class Conflict:
    """Another request has this ID."""


@dataclass(frozen=True, slots=True)
class Granted:
    """The execution is the request's only writer."""

    fence: str
    attempt: int
    next_index: int
    crashes: int
    deadline_us: int
    prompt_ids: bytes
    """JSON, as the first claim stored it."""
    emitted: tuple[bytes, ...]
    """What earlier attempts wrote: token ID, text, token ID, text, …"""
    effective: bytes = b""
    """JSON, as the first claim stored it; empty for a request of wire version 1."""
    logprobs: tuple[bytes, ...] = ()
    """JSON, of each emitted token, where the request asks for them."""


@dataclass(frozen=True, slots=True)
class Busy:
    """Another execution's lease holds."""


@dataclass(frozen=True, slots=True)
class Poison:
    """The request took too many workers down: it was ended as failed."""


@dataclass(frozen=True, slots=True)
class NotMine:
    """Another kind of worker must serve the request."""

    why: str


@dataclass(frozen=True, slots=True)
class Scored:
    """The log-probabilities of the prompt's tokens are in the hash."""


@dataclass(frozen=True, slots=True)
class Appended:
    """The tokens are in the stream, and the lease is renewed."""

    next_index: int


@dataclass(frozen=True, slots=True)
class Gap:
    """Tokens are missing before those that were sent: send again from `next_index`."""

    next_index: int


@dataclass(frozen=True, slots=True)
class Finished:
    """The last tokens and the terminal event are in the stream."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The request was ended as failed."""


@dataclass(frozen=True, slots=True)
class Cancelled:
    """The request was ended as cancelled. `fence`: of the attempt that held it, empty where none did."""

    fence: str


@dataclass(frozen=True, slots=True)
class Expired:
    """The request was ended by its deadline: `expired`, or `incomplete` where it had tokens."""

    state: State


@dataclass(frozen=True, slots=True)
class Early:
    """The deadline is still to come."""


@dataclass(frozen=True, slots=True)
class Renewed:
    """The lease is renewed."""


@dataclass(frozen=True, slots=True)
class Released:
    """The request has no fence any more: any worker may claim it."""


@dataclass(frozen=True, slots=True)
class Live:
    """The lease holds."""


@dataclass(frozen=True, slots=True)
class Suspect:
    """The lease has expired; a second check confirms it."""


@dataclass(frozen=True, slots=True)
class Free:
    """The request has no fence: it was released, or never claimed."""


@dataclass(frozen=True, slots=True)
class Fenced:
    """Another attempt has the request, or none: stop writing."""


@dataclass(frozen=True, slots=True)
class Done:
    """The request had ended before."""

    state: State


@dataclass(frozen=True, slots=True)
class Past:
    """The deadline is past."""


@dataclass(frozen=True, slots=True)
class Unreadable:
    """The hash holds no number in `field`: no worker can continue the request."""

    field: str


@dataclass(frozen=True, slots=True)
class Lost:
    """Hash or stream is gone, or the stream lacks tokens that the hash counts."""


CreateReply = Created | Attached | Conflict
ClaimReply = Granted | Busy | Done | Past | Poison | NotMine | Unreadable | Lost
ScoreReply = Scored | Fenced | Done | Lost
AppendReply = Appended | Fenced | Done | Past | Gap | Unreadable | Lost
FinishReply = Finished | Fenced | Done | Gap | Unreadable | Lost
CancelReply = Cancelled | Done | Lost
ExpireReply = Expired | Early | Done | Unreadable | Lost
FailReply = Failed | Done | Lost
RenewReply = Renewed | Fenced | Done | Past | Unreadable | Lost
ReleaseReply = Released | Fenced | Done | Lost
SuspectReply = Live | Suspect | Released | Free | Done | Lost

_Reply = list[Any]
_appended = lru_cache(maxsize=4096)(Appended)
"""Equal ones are one: with each token comes one, and to make it takes longer than all else about its reply."""


def _created(reply: _Reply) -> Created:
    return Created(int(reply[1]))


def _granted(reply: _Reply) -> Granted:
    _, fence, _, _, _, deadline_us, prompt_ids, emitted, effective, logprobs = reply
    deadline = whole(deadline_us)
    if deadline is None:
        raise ProtocolError("the claim's reply holds no deadline")
    numbers = whole_number(reply[2]), whole_number(reply[3]), whole_number(reply[4])
    return Granted(text(fence), *numbers, deadline, prompt_ids, tuple(emitted), effective, tuple(logprobs))


def _append(reply: _Reply | int) -> AppendReply:
    return _appended(reply) if isinstance(reply, int) else _NOT_APPENDED(reply)


def describe(reply: Unreadable | Lost | Unusable) -> str:
    """What is wrong with a request that no worker can continue, for the log and the terminal event."""
    match reply:
        case Unusable():
            return "its keys in Redis are unusable"
        case Unreadable(field):
            return f"its hash in Redis holds no number in {field!r}"
        case Lost():
            return "its stream in Redis doesn't hold the tokens that its hash counts"


CREATE: Final[_Reader[CreateReply]] = by_word(OK=_created, ATTACHED=Attached, CONFLICT=Conflict)
CLAIM: Final[_Reader[ClaimReply]] = by_word(
    OK=_granted, BUSY=Busy, DONE=Done, PAST=Past, POISON=Poison, NOT_MINE=NotMine, UNREADABLE=Unreadable, LOST=Lost
)
SCORE: Final[_Reader[ScoreReply]] = by_word(OK=Scored, FENCED=Fenced, DONE=Done, LOST=Lost)
_NOT_APPENDED: Final[_Reader[AppendReply]] = by_word(
    FENCED=Fenced, DONE=Done, PAST=Past, GAP=Gap, UNREADABLE=Unreadable, LOST=Lost
)
APPEND: Final[_Reader[AppendReply]] = _append
FINISH: Final[_Reader[FinishReply]] = by_word(
    OK=Finished, FENCED=Fenced, DONE=Done, GAP=Gap, UNREADABLE=Unreadable, LOST=Lost
)
CANCEL: Final[_Reader[CancelReply]] = by_word(OK=Cancelled, DONE=Done, LOST=Lost)
EXPIRE: Final[_Reader[ExpireReply]] = by_word(OK=Expired, EARLY=Early, DONE=Done, UNREADABLE=Unreadable, LOST=Lost)
FAIL: Final[_Reader[FailReply]] = by_word(OK=Failed, DONE=Done, LOST=Lost)
RENEW: Final[_Reader[RenewReply]] = by_word(
    OK=Renewed, FENCED=Fenced, DONE=Done, PAST=Past, UNREADABLE=Unreadable, LOST=Lost
)
RELEASE: Final[_Reader[ReleaseReply]] = by_word(OK=Released, FENCED=Fenced, DONE=Done, LOST=Lost)
SUSPECT: Final[_Reader[SuspectReply]] = by_word(
    LIVE=Live, SUSPECT=Suspect, RELEASED=Released, FREE=Free, DONE=Done, LOST=Lost
)
"""The readers of each script's replies."""
