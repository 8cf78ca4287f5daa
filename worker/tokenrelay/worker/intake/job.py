"""A job on its way from the queue to a claim."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tokenrelay.shared.redis.commands import server_time_us

if TYPE_CHECKING:
    from collections.abc import Mapping
    from concurrent.futures import Future

    from tokenrelay.shared.effective import Effective
    from tokenrelay.shared.options import Submission
    from tokenrelay.shared.redis.commands import Reply
    from tokenrelay.shared.store.jobs import Execution
    from tokenrelay.worker.core.attempts import Ending
    from tokenrelay.worker.sampling.grammar.compiler import Compilation
    from tokenrelay.worker.sampling.grammar.matcher import CompiledGrammar


@dataclass(slots=True)
class Job:
    """A job that was taken off its queue, and what has been read of its request."""

    execution: Execution
    data: bytes
    crashed: int = 0
    """How many workers died with it before they could claim the request."""
    options: Submission | None = None
    prompt_ids: tuple[int, ...] = ()
    encoded: tuple[bytes, bytes] = (b"[]", b"")
    """The prompt as the claim stores it: token IDs as JSON, and of a short prompt their texts."""
    retention_s: int = 1
    crashes: int = 0
    missing_since: float | None = None
    """Since when its request isn't found in Redis, on this process's monotonic clock."""
    refusal: Ending | None = None
    effective: Effective | None = None
    """What a first claim would store; None for a request of wire version 1."""
    marks: Mapping[int, str] = field(default_factory=dict)
    """Special tokens that stay in its answer's text: vocabulary ID → text."""
    wire: int = 1
    decided: bool = False
    """Whether an earlier claim has stored what it decided."""
    compiling: Compilation | None = None
    """What its answer must match, while that is compiled."""
    compiling_since: float = 0.0
    """On this process's monotonic clock."""
    notifies: Future[Any] | None = None
    """The part of the compilation whose end intake is notified of."""
    waits: bool = False
    """Whether it is noted in Redis as one that only waits, or may be: its worker's death isn't counted."""
    grammar: CompiledGrammar | None = None
    """What its answer must match."""
    deferred: str = ""
    """Why it goes back to its queue for a moment; empty where it doesn't."""
    foreign: str = ""
    """What the request asks for that this kind of worker can't do, and others may; empty where there's nothing."""


def encoded(prompt_ids: tuple[int, ...], texts: tuple[str, ...]) -> tuple[bytes, bytes]:
    """`Job.encoded`."""
    ids = json.dumps(prompt_ids).encode()
    # The texts are for people: what isn't Unicode in them is no reason to fail a request.
    return ids, json.dumps(texts, ensure_ascii=False).encode("utf-8", "replace") if texts else b""


def waited_s(job: Job, deadline_us: int, time_now: Reply) -> float | None:
    """How long ago the request was submitted, by Redis's clock: its deadline was set then."""
    if job.options is None or isinstance(time_now, Exception):
        return None
    submitted_us = deadline_us - int(job.options["deadline_s"] * 1000) * 1000
    return max((server_time_us(time_now) - submitted_us) / 1e6, 0.0)
