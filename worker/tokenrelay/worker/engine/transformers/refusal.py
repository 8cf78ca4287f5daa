"""What a model that an engine can't serve says at start: one line that names the reason."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from tokenrelay.worker.engine.contract import ModelError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

_LONGEST: Final = 300


def one_line(error: BaseException) -> str:
    """What an exception says, in one line of bounded length; its type too where it says little."""
    words = " ".join(str(error).split())
    if len(words) < 40:
        words = f"{type(error).__name__}: {words}" if words else type(error).__name__
    return shorten(words)


def shorten(words: str) -> str:
    """No more of a text than a line of a log bears."""
    return words if len(words) <= _LONGEST else words[: _LONGEST - 3] + "..."


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
