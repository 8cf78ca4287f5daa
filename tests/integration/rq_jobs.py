"""Jobs for RQ's own worker, which imports them by name."""

from __future__ import annotations

import time

from rq import get_current_job

GO = "go"
"""The key that ends `wait`."""


def finish() -> str:
    return "done"


def fail() -> None:
    raise ValueError("told to")


def wait() -> None:
    job = get_current_job()
    assert job is not None
    while not job.connection.exists(GO):
        time.sleep(0.02)
