"""A worker's start while Redis can't be reached: the model is loaded, and what took minutes isn't thrown away."""

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
"""What only somebody who changes the settings can mend."""


def retry(attempt: Callable[[], object], where: str, stopped: Callable[[], bool]) -> bool:
    """Call `attempt` until it meets no transient redis error; False where `stopped` says so before.

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
