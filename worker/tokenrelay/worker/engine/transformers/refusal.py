"""What a model that an engine can't serve says at start: one line that names the reason."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tokenrelay.worker.engine.contract import ModelError
from tokenrelay.worker.engine.model_files.one_line import one_line

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch


@contextmanager
def refusing(model: torch.nn.Module, but: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Raises ModelError for whatever goes wrong inside, except for `but`: a model's own code and configuration, and the
    manager's on meeting them, may raise anything."""
    try:
        yield
    except Exception as error:
        if isinstance(error, (ModelError, *but)):
            raise
        raise ModelError(f"{type(model).__name__} can't be served by continuous batching: {one_line(error)}") from error


@contextmanager
def quiet_manager() -> Iterator[None]:
    """The manager logs the traceback of what its thread dies of; the error that is raised says it in one line."""
    logger = logging.getLogger("ContinuousBatchingLogger")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
