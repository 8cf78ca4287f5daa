"""The warning that a waiting reader gets while no worker serves its queue."""

from __future__ import annotations

import inspect
import warnings
from pathlib import Path
from typing import Final

_OURS: Final = str(Path(__file__).parent)


class NoWorkerWarning(UserWarning):
    """A queued request's model is served by no live worker; it waits until one comes or its deadline passes."""


def warn_no_worker(request_id: str, queue: str) -> None:
    """Issue a NoWorkerWarning that points at the line which waits, outside this package."""
    model = queue.removeprefix("tokenrelay.").rpartition(".")[0].replace("--", "/")
    warnings.warn(
        f"request {request_id} waits in {queue}, but no live worker serves it; "
        f"start one that serves the model {model!r}, or check the name",
        NoWorkerWarning,
        stacklevel=_caller_level(),
    )


def _caller_level() -> int:
    frame, level = inspect.currentframe(), 0
    while frame is not None and frame.f_code.co_filename.startswith(_OURS):
        frame, level = frame.f_back, level + 1
    return max(level, 1)
