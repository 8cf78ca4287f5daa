"""Which gateways have readers of a request: a hash in Redis with one expiry time per gateway."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Final

from tokenrelay.producer._core.steps import RoundTrip, ask, raise_on_error
from tokenrelay.shared.redis.commands import server_time, server_time_us
from tokenrelay.shared.store import requests
from tokenrelay.shared.wire.keys import Plane

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenrelay.producer._core.steps import Steps
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
        for request_id in request_ids:
            batch += requests.announce_readers(request_id, self._name, good_until_us, int(_LIFETIME_S * 1000))
        replies = yield RoundTrip(batch)
        announced = [
            request_id
            for request_id, pair in zip(request_ids, zip(replies[::2], replies[1::2], strict=True), strict=True)
            if not any(isinstance(reply, Exception) for reply in pair)
        ]
        if not announced:
            raise_on_error(replies)
        return announced

    def has_readers_elsewhere(self, request_id: str) -> Steps[bool]:
        """Withdraw this gateway's announcement, and return whether another gateway has readers of the request."""
        withdrawn, held = requests.withdraw_readers(request_id, self._name), requests.readers_look(request_id)
        _, announced, time = yield from ask([withdrawn, held, server_time(Plane.TOKEN)])
        return requests.has_readers(announced, server_time_us(time))
