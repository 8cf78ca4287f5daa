"""How a worker's processes end: what they write, and their exit codes. Imports nothing that takes long."""

from __future__ import annotations

import logging
import os
import sys
import traceback
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from tokenrelay.shared.errors import EngineError, RedisUnusable, TokenRelayError

if TYPE_CHECKING:
    from collections.abc import Iterator

FAILED: Final = 1
"""The engine or the model."""
BAD_SETTINGS: Final = 2
REDIS_UNUSABLE: Final = 3
INTERRUPTED: Final = 130


def log_to_stderr() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)


@contextmanager
def hard_exit() -> Iterator[None]:
    """The process ends at once with what the block raises: a dead engine may have left a thread that never ends."""
    try:
        yield
    except BaseException as error:  # noqa: BLE001  the process ends here
        code = report(error)
        logging.shutdown()
        sys.stderr.flush()
        os._exit(code)


def report(error: BaseException) -> int:
    """Write what ended the process to stderr, in one line where that tells the user something; its exit code."""
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    if not isinstance(error, TokenRelayError):
        traceback.print_exception(error)
        return FAILED
    sys.stderr.write(f"tokenrelay-worker: {error}\n")
    if isinstance(error, RedisUnusable):
        return REDIS_UNUSABLE
    return FAILED if isinstance(error, EngineError) else BAD_SETTINGS
