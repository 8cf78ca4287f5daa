"""Which gateways have readers of a request: a hash in Redis with one expiry time per gateway."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Final

from tokenrelay.producer._core.endings import server_time_us
from tokenrelay.producer._core.rounds import Round, ask, refused
from tokenrelay.shared.redis.commands import server_time
from tokenrelay.shared.wire import keys
from tokenrelay.shared.wire.entries import text
from tokenrelay.shared.wire.keys import Plane

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenrelay.producer._core.rounds import Steps
    from tokenrelay.shared.redis.commands import Batch

RENEW_S: Final = 5.0
_LIFETIME_S: Final = 15.0
"""Lifetime of an announcement. A crashed gateway delays the cancellation of its requests by this long."""


class Presence:
    """This gateway's announcements, and those of others."""

    def __init__(self) -> None:
        self._name = secrets.token_urlsafe(9)

    def announce(self, request_ids: Sequence[str]) -> Steps[list[str]]:
        """Announce readers of these requests. Returns the requests that were announced; raises if none was."""
        (time,) = yield from ask([server_time(Plane.TOKEN)])
        good_until_us = server_time_us(time) + int(_LIFETIME_S * 1e6)
        batch: Batch = []
        for key in map(keys.attached, request_ids):
            batch += [("HSET", key, self._name, good_until_us), ("PEXPIRE", key, int(_LIFETIME_S * 1000))]
        replies = yield Round(batch)
        with_annotation = [
            request_id
            for request_id, pair in zip(request_ids, zip(replies[::2], replies[1::2], strict=True), strict=True)
            if not any(isinstance(reply, Exception) for reply in pair)
        ]
        if not with_annotation:
            refused(replies)
        return with_annotation

    def has_readers_elsewhere(self, request_id: str) -> Steps[bool]:
        """Withdraw this gateway's announcement, and return whether another gateway has readers of the request."""
        key = keys.attached(request_id)
        _, marks, time = yield from ask([("HDEL", key, self._name), ("HGETALL", key), server_time(Plane.TOKEN)])
        now_us = server_time_us(time)
        return any(_until_us(mark) > now_us for mark in marks.values())


def _until_us(mark: object) -> int:
    """The announcement's expiry; 0 for a malformed one."""
    value = text(mark)
    return int(value) if value.isdecimal() and len(value) < 20 else 0
