"""A worker's start while Redis can't be reached: it is retried, as loading the model took minutes."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Final

from redis.exceptions import AuthenticationError, AuthorizationError, NoPermissionError, RedisError

from tokenrelay.shared.redis.connections import explain, is_transient

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger(__name__)

RETRY_S: Final = 0.5
_FATAL: Final = (AuthenticationError, AuthorizationError, NoPermissionError)
"""Errors that only a change of the settings or of Redis's users can end."""


def retry(attempt: Callable[[], object], where: str, stopped: Callable[[], bool]) -> bool:
    """Call `attempt` until it raises no transient redis error; False once `stopped` is true.

    Raises RedisUnusable for other redis errors, such as a wrong password; `where` is the server's address.
    """
    while not stopped():
        try:
            attempt()
        except RedisError as error:
            if isinstance(error, _FATAL) or not is_transient(error):
                raise explain(error, where) from error
            log.warning("the worker couldn't register: %s; trying again", error)
            time.sleep(RETRY_S)
        else:
            return True
    return False
