"""Commands as RESP, and replies in the shapes that redis-py gives them."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, cast

from tokenrelay.shared.redis.commands import Call, On

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tokenrelay.shared.redis.commands import Command, Item, Reply


def packed(item: Item, *, modern: bool) -> bytes:
    """The command as RESP, the bytes that redis-py's own packer makes of it. `modern`: for Redis 7 and later."""
    if isinstance(item, Call):
        command: Command = ("EVALSHA", item.script.sha1(modern=modern), len(item.keys), *item.keys, *item.args)
    else:
        command = item.command if isinstance(item, On) else item
    try:
        return _pack(command)
    except (UnicodeEncodeError, TypeError):  # a name that isn't UTF-8; what only str() makes text of
        return pack_command(command)


def pack_command(arguments: Command) -> bytes:
    """What hiredis makes of them, where there is none, and of text as `entries.text` reads what isn't UTF-8."""
    parts = [b"*%d\r\n" % len(arguments)]
    for argument in arguments:
        data = argument if isinstance(argument, bytes) else str(argument).encode("utf-8", "surrogateescape")
        parts.append(b"$%d\r\n%b\r\n" % (len(data), data))
    return b"".join(parts)


_pack: Callable[[Command], bytes] = pack_command
with contextlib.suppress(ImportError):  # it comes with the extras of the worker and the gateway
    import hiredis

    _pack = cast("Callable[[Command], bytes]", hiredis.pack_command)


def shaped(item: Item, reply: Reply, callbacks: Mapping[Any, Any]) -> Reply:
    """The reply as redis-py shapes it by `callbacks`: INFO as a dict, a stream's entries as pairs, …"""
    if isinstance(item, Call) or isinstance(reply, Exception):
        return reply
    command = item.command if isinstance(item, On) else item
    if "WITHSCORES" in command:
        return _scored(reply)
    shape = callbacks.get(command[0])
    return reply if shape is None else shape(reply)


def _scored(reply: Reply) -> list[tuple[Reply, float]]:
    """Members with their scores, which RESP2 gives in one flat list and RESP3 in pairs. redis-py's own shape depends on
    options that its methods set."""
    if reply and not isinstance(reply[0], list | tuple):
        reply = zip(reply[::2], reply[1::2], strict=True)
    return [(member, float(score)) for member, score in reply]
