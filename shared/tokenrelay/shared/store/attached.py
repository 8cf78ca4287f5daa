"""Which gateways have readers of a request: a hash of the token plane with one expiry time per gateway."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tokenrelay.shared.wire import keys
from tokenrelay.shared.wire.entries import text

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tokenrelay.shared.redis.commands import Command

_MAX_DIGITS = 19


def announce(request_id: str, gateway: str, until_us: int, lifetime_ms: int) -> tuple[Command, Command]:
    """The commands that announce a gateway's readers until `until_us`, by the token plane's clock."""
    key = keys.attached(request_id)
    return ("HSET", key, gateway, until_us), ("PEXPIRE", key, lifetime_ms)


def withdraw(request_id: str, gateway: str) -> Command:
    """The command that withdraws a gateway's announcement."""
    return ("HDEL", keys.attached(request_id), gateway)


def announcements(request_id: str) -> Command:
    """The command that reads all gateways' announcements; `has_readers` reads its reply."""
    return ("HGETALL", keys.attached(request_id))


def has_readers(reply: Mapping[Any, Any], now_us: int) -> bool:
    """Whether a gateway's announcement still holds. A malformed one doesn't."""
    return any(_until_us(value) > now_us for value in reply.values())


def _until_us(value: object) -> int:
    digits = text(value)
    return int(digits) if digits.isdecimal() and len(digits) <= _MAX_DIGITS else 0
