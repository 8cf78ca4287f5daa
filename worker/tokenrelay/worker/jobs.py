"""The one job function. RQ jobs name it; a tokenrelay worker looks it up in its allowlist and never calls it."""

from __future__ import annotations


def generate(request_id: str) -> None:
    """Say what to start: a stock RQ worker that took this job can't generate. Raises RuntimeError."""
    raise RuntimeError(f"request {request_id} needs `tokenrelay-worker run`, not `rq worker`; requeue it afterwards")
