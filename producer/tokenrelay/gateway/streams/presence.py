"""Which gateways have readers of a request, as Redis holds it: each one's mark says until when its word is good."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Final

from tokenrelay.producer._core.endings import server_time_us
from tokenrelay.producer._core.rounds import Round, ask, refused
from tokenrelay.shared.wire import keys
from tokenrelay.shared.wire.entries import text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenrelay.producer._core.rounds import Steps
    from tokenrelay.shared.redis.batches import Batch

RENEW_S: Final = 5.0
_GOOD_S: Final = 15.0
"""For so long a gateway that is gone without a word keeps others from cancelling what it had readers of."""


class Presence:
    """This gateway's marks and those of others."""

    def __init__(self) -> None:
        self._name = secrets.token_urlsafe(9)

    def mark(self, request_ids: Sequence[str]) -> Steps[list[str]]:
        """Say that there are readers here. Those of the requests of which it's said now; raises where it's none."""
        (time,) = yield from ask([("TIME",)])
        good_until_us = server_time_us(time) + int(_GOOD_S * 1e6)
        batch: Batch = []
        for key in map(keys.attached, request_ids):
            batch += [("HSET", key, self._name, good_until_us), ("PEXPIRE", key, int(_GOOD_S * 1000))]
        replies = yield Round(batch)
        marked = [
            request_id
            for request_id, pair in zip(request_ids, zip(replies[::2], replies[1::2], strict=True), strict=True)
            if not any(isinstance(reply, Exception) for reply in pair)
        ]
        if not marked:
            refused(replies)
        return marked

    def elsewhere(self, request_id: str) -> Steps[bool]:
        """Take this gateway's mark back. Whether another one has readers of the request."""
        key = keys.attached(request_id)
        _, marks, time = yield from ask([("HDEL", key, self._name), ("HGETALL", key), ("TIME",)])
        now_us = server_time_us(time)
        return any(_until_us(mark) > now_us for mark in marks.values())


def _until_us(mark: object) -> int:
    """A mark that no gateway wrote says nothing."""
    told = text(mark)
    return int(told) if told.isdecimal() and len(told) < 20 else 0
