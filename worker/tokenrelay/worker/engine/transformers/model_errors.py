"""Errors of a model that this engine can't serve, in one line that names the reason."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from tokenrelay.worker.engine.contract import ModelError
from tokenrelay.worker.engine.model_files.one_line import one_line

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

MANAGER_LOG: Final = logging.getLogger("ContinuousBatchingLogger")
"""The manager's own log."""


@contextmanager
def translate_errors(model: torch.nn.Module, but: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Translate every exception except `but` into ModelError: code of the model, and of the manager that runs it, may
    raise anything."""
    try:
        yield
    except Exception as error:
        if isinstance(error, (ModelError, *but)):
            raise
        raise ModelError(f"{type(model).__name__} can't be served by continuous batching: {one_line(error)}") from error


@contextmanager
def mute_manager() -> Iterator[None]:
    """Suppress the manager's log of a fatal traceback: the error that is raised says it in one line."""
    level = MANAGER_LOG.level
    MANAGER_LOG.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        MANAGER_LOG.setLevel(level)
