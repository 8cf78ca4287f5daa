"""What the queue plane's scripts answer: a type for each word, and for each script the union of those that it gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar

from tokenrelay.shared.redis.calls import by_word

if TYPE_CHECKING:
    from collections.abc import Callable

    T = TypeVar("T")
    _Reader = Callable[[Any], T]


@dataclass(frozen=True, slots=True)
class Enqueued:
    """The job is on its queue, which holds `depth` now."""

    depth: int


@dataclass(frozen=True, slots=True)
class AlreadyEnqueued:
    """The job was there before."""


@dataclass(frozen=True, slots=True)
class Full:
    """The queue holds as many jobs as it may."""

    depth: int


@dataclass(frozen=True, slots=True)
class Closed:
    """RQ agrees that the job has ended, now or before."""


@dataclass(frozen=True, slots=True)
class HasDependents:
    """RQ agrees that the job has ended; it stays claimed until the jobs that depend on it are enqueued."""


@dataclass(frozen=True, slots=True)
class NoJob:
    """RQ has no such job, so there was nothing to close."""


@dataclass(frozen=True, slots=True)
class Requeued:
    """The job is on its queue again."""


@dataclass(frozen=True, slots=True)
class NotStarted:
    """RQ doesn't call the job started: what it calls it, empty where nothing."""

    status: str


@dataclass(frozen=True, slots=True)
class Deleted:
    """The job was deleted through RQ."""


@dataclass(frozen=True, slots=True)
class Kept:
    """RQ calls the job started again."""


@dataclass(frozen=True, slots=True)
class NotFailed:
    """RQ doesn't call the job failed: what it calls it, empty where nothing."""

    status: str


@dataclass(frozen=True, slots=True)
class Noted:
    """The execution's keys say so now."""


@dataclass(frozen=True, slots=True)
class LockHeld:
    """The lock is the caller's."""


@dataclass(frozen=True, slots=True)
class LockTaken:
    """The lock is another's, for so long."""

    left_ms: int


@dataclass(frozen=True, slots=True)
class Forgotten:
    """So many workers were taken out of RQ's sets."""

    workers: int


EnqueueReply = Enqueued | AlreadyEnqueued | Full
CloseReply = Closed | HasDependents | NoJob
RequeueReply = Requeued | NotStarted | Deleted
KeepReply = Kept | NotFailed
MaintainReply = LockHeld | LockTaken

ENQUEUE: Final[_Reader[EnqueueReply]] = by_word(OK=Enqueued, ALREADY=AlreadyEnqueued, FULL=Full)
CLOSE: Final[_Reader[CloseReply]] = by_word(OK=Closed, ALREADY=Closed, DEPENDENTS=HasDependents, LOST=NoJob)
REQUEUE: Final[_Reader[RequeueReply]] = by_word(OK=Requeued, NOT_STARTED=NotStarted, LOST=Deleted)
KEEP: Final[_Reader[KeepReply]] = by_word(OK=Kept, ALREADY=NotFailed)
NOTE: Final[_Reader[Noted]] = by_word(OK=Noted)
MAINTAIN: Final[_Reader[MaintainReply]] = by_word(OK=LockHeld, BUSY=LockTaken)
FORGET: Final[_Reader[Forgotten]] = by_word(OK=Forgotten)
"""The readers of each script's replies."""
