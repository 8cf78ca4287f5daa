"""The messages between the worker's threads: values, put into the receiver's inbox.

Anybody may post to the generation loop with `GenerationLoop.post`, signal handlers too; its thread alone acts on what
it gets. What the loop says to intake and to the keeper of RQ's jobs stands here too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tokenrelay.worker.engine.contract import EngineDied, EngineOutputs

if TYPE_CHECKING:
    from tokenrelay.shared.store.jobs import Execution, Outcome
    from tokenrelay.worker.core.attempts import Claimed


@dataclass(frozen=True, slots=True)
class Stop:
    """Stop: the first one drains, the second one hands everything back at once. `at` is `time.monotonic()`."""

    at: float


@dataclass(frozen=True, slots=True)
class StopJob:
    """RQ's command to stop a job, or one execution of it: cancel the request."""

    job_id: str
    execution_id: str = ""


@dataclass(frozen=True, slots=True)
class JobGone:
    """A job was cancelled or deleted through RQ's own API: cancel the request."""

    job_id: str


@dataclass(frozen=True, slots=True)
class RequestEnded:
    """Somebody ended this request, cancelled it perhaps."""

    job_id: str


@dataclass(frozen=True, slots=True)
class JobsQueued:
    """There may be something to claim."""


@dataclass(frozen=True, slots=True)
class Claims:
    """Requests that are now this worker's. The engine gets them with the `PollDone` that follows."""

    claimed: tuple[Claimed, ...]


@dataclass(frozen=True, slots=True)
class PollDone:
    """Intake has answered a `Poll`."""

    unclaimed: bool
    """Whether it keeps jobs that were taken, or may have been, and aren't claimed."""
    exhausted: bool
    """Whether an idle worker found nothing to take."""


@dataclass(frozen=True, slots=True)
class JobClosed:
    """RQ knows of an execution's end; not `accepted` where Redis refuses it for good."""

    execution_id: str
    accepted: bool = True


@dataclass(frozen=True, slots=True)
class ThreadDied:
    """A thread of the worker's ended by an error, which ends the worker."""

    error: BaseException


Message = (
    EngineOutputs
    | EngineDied
    | Claims
    | PollDone
    | JobsQueued
    | RequestEnded
    | StopJob
    | JobGone
    | JobClosed
    | Stop
    | ThreadDied
)
"""What the generation loop receives."""


@dataclass(frozen=True, slots=True)
class Poll:
    """Claim up to `free` requests. `idle`: the worker holds none."""

    free: int
    idle: bool


@dataclass(frozen=True, slots=True)
class Hold:
    """This worker has claimed a job's request."""

    execution: Execution


@dataclass(frozen=True, slots=True)
class CloseJob:
    """The request has ended, and so has its job."""

    execution: Execution
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class DropJob:
    """The request is another worker's: forget this execution of its job."""

    execution: Execution


@dataclass(frozen=True, slots=True)
class Forget:
    """The request was handed back."""

    execution: Execution


@dataclass(frozen=True, slots=True)
class Leave:
    """End the thread."""


IntakeMessage = Poll | JobsQueued | Leave
JobMessage = Hold | CloseJob | DropJob | Forget | Leave
