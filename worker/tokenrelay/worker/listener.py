"""The listener: a thread that turns what is published on Redis's channels into messages for the generation loop.

It only posts. What is published while it isn't connected is lost: queues and leases are polled as well.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING, Final

from redis.exceptions import RedisError

from tokenrelay.shared.redis.commands import channels_plane

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from redis import Redis

    from tokenrelay.shared.redis.servers import Servers
    from tokenrelay.worker.core.figures import Figures
    from tokenrelay.worker.core.messages import Message

log = logging.getLogger(__name__)

RETRY_S: Final = 1.0
_READ_S: Final = 60.0
_JOIN_S: Final = 1.0


class Listener:
    """Posts what `channels`, all of one plane, make of the messages published on them. Empty messages are ignored."""

    def __init__(
        self,
        servers: Servers[Redis],
        channels: Mapping[str, Callable[[bytes], Message | None]],
        post: Callable[[Message], object],
        figures: Figures,
    ) -> None:
        """Raises MixedPlanesError where the channels aren't of one plane."""
        self._connection = servers.client(channels_plane(list(channels)))
        self._channels = {channel.encode(): parse for channel, parse in channels.items()}
        self._post = post
        self._figures = figures
        self._pubsub = self._connection.pubsub(ignore_subscribe_messages=True)  # type: ignore[no-untyped-call]
        self._thread = threading.Thread(target=self._listen, name="listener", daemon=True)
        self._stopped = False

    def start(self) -> None:
        """Subscribe and listen; a no-op where it listens already. Raises redis errors: repeat it then."""
        if not self._thread.is_alive():
            self._pubsub.subscribe(*self._channels)
            self._thread.start()

    def stop(self) -> None:
        """Stop listening. Where Redis can't be reached, the thread ends with the process.

        An empty message on the first channel wakes the thread: `PubSub.unsubscribe` would reconnect a lost connection
        and resubscribe while it holds its own lock, and never return (redis-py 6.2).
        """
        if not self._thread.is_alive():
            return
        self._stopped = True
        try:
            self._connection.publish(next(iter(self._channels)), b"")
        except RedisError as error:
            log.warning("the listener couldn't be woken: %s", error)
        self._thread.join(timeout=_JOIN_S)
        self._pubsub.close()

    def _listen(self) -> None:
        while not self._stopped:
            try:
                message = self._pubsub.get_message(timeout=_READ_S)
                if message is not None and message["data"]:
                    self._receive(message["channel"], message["data"])
            except RedisError as error:
                self._figures.redis_errors.add("listen")
                log.warning("listening: %s; trying again", error)
                time.sleep(RETRY_S)
            except Exception:  # one message's
                log.exception("a published message couldn't be handled")
                time.sleep(RETRY_S)

    def _receive(self, channel: bytes, data: bytes) -> None:
        message = self._channels[channel](data)
        if message is not None:
            self._post(message)
