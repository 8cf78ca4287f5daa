"""The listener: one thread that turns what is published to this worker into messages for the generation loop.

RQ's commands to the worker, the keys of queues that got a job, and the IDs of requests that somebody else ended. It
only posts. What is published while it isn't connected is lost: leases and queues are polled as well.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING, Any, Final

from redis.exceptions import RedisError

from tokenrelay.shared.wire import keys
from tokenrelay.worker.core.messages import JobsQueued, RequestEnded
from tokenrelay.worker.rq_mirror.commands import parse_command

if TYPE_CHECKING:
    from collections.abc import Callable

    from redis import Redis

    from tokenrelay.worker.core.figures import Figures
    from tokenrelay.worker.core.messages import Message

log = logging.getLogger(__name__)

RETRY_S: Final = 1.0
_READ_S: Final = 60.0
_JOIN_S: Final = 1.0


class Listener:
    """Posts what is published to the worker named `worker`."""

    def __init__(self, connection: Redis, worker: str, post: Callable[[Message], None], figures: Figures) -> None:
        self._connection = connection
        self._commands = keys.rq_commands(worker)
        self._post = post
        self._figures = figures
        self._pubsub = connection.pubsub(ignore_subscribe_messages=True)  # type: ignore[no-untyped-call]
        self._thread = threading.Thread(target=self._listen, name="listener", daemon=True)
        self._stopped = False

    def start(self) -> None:
        """Subscribe and listen; a no-op where it listens already. Raises redis errors: repeat it then."""
        if self._thread.is_alive():
            return
        self._pubsub.subscribe(self._commands, keys.QUEUED, keys.ENDED)
        self._thread.start()

    def stop(self) -> None:
        """Stop listening. Where Redis can't be reached, the thread ends with the process.

        An empty message to itself wakes the thread: `PubSub.unsubscribe` would reconnect a lost connection and
        resubscribe while it holds its own lock, and never return (redis-py 6.2).
        """
        if not self._thread.is_alive():
            return
        self._stopped = True
        try:
            self._connection.publish(self._commands, b"")
        except RedisError as error:
            log.warning("the listener couldn't be woken: %s", error)
        self._thread.join(timeout=_JOIN_S)
        self._pubsub.close()

    def _listen(self) -> None:
        while not self._stopped:
            try:
                message = self._pubsub.get_message(timeout=_READ_S)
                if message is not None:
                    self._receive(message)
            except RedisError as error:
                self._figures.redis_errors.add("listen")
                log.warning("listening: %s; trying again", error)
                time.sleep(RETRY_S)
            except Exception:  # one message's
                log.exception("a message couldn't be handled")
                time.sleep(RETRY_S)

    def _receive(self, message: dict[str, Any]) -> None:
        data: bytes = message["data"]
        match message["channel"].decode():
            case keys.QUEUED:
                self._post(JobsQueued())
            case keys.ENDED:
                self._post(RequestEnded(data.decode("utf-8", "replace")))
            case _:
                command = parse_command(data) if data else None
                if command is not None:
                    self._post(command)
