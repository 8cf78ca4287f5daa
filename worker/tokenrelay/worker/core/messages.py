"""What other threads tell the generation loop: values, posted to its inbox with `GenerationLoop.post`.

Anybody may post, signal handlers too. Only the loop's thread acts on a message.
"""

from __future__ import annotations

from dataclasses import dataclass


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
class RequestEnded:
    """Somebody ended this request, cancelled it perhaps."""

    job_id: str


@dataclass(frozen=True, slots=True)
class JobsQueued:
    """There may be something to claim."""


Message = Stop | StopJob | RequestEnded | JobsQueued
