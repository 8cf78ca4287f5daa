"""Redis commands as values, each of one plane, and batches of them. Knows no client."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from tokenrelay.shared.wire.keys import Plane, plane_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

Argument = str | bytes | int | float
Command = tuple[Argument, ...]
Reply = Any

_ALL_ARGUMENTS: Final = frozenset({"DEL", "EXISTS", "UNLINK"})
"""Commands whose arguments are keys, all of them."""
_WITHOUT_KEY: Final = frozenset({"CLIENT", "INFO", "PING", "TIME"})


class MixedPlanesError(ValueError):
    """A batch whose commands aren't all of one plane. A mistake in the code that built it, never Redis's."""


class Script:
    """A Lua script: its name, its plane, and its source for servers of Redis 7 and later (`modern`) or 6.2."""

    __slots__ = ("_read", "_sources", "name", "plane")

    def __init__(self, name: str, plane: Plane, read: Callable[[bool], str]) -> None:
        self.name = name
        self.plane = plane
        self._read = read
        self._sources: dict[bool, tuple[str, str]] = {}

    def __repr__(self) -> str:
        return f"Script({self.name!r}, {self.plane!s})"

    def source(self, *, modern: bool) -> str:
        return self._loaded(modern)[0]

    def sha1(self, *, modern: bool) -> str:
        """The name under which EVALSHA finds it."""
        return self._loaded(modern)[1]

    def _loaded(self, modern: bool) -> tuple[str, str]:
        loaded = self._sources.get(modern)
        if loaded is None:
            source = self._read(modern)
            loaded = source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()
            self._sources[modern] = loaded
        return loaded


@dataclass(slots=True)
class Call:
    """A script call: `keys` and `args` as the script's header lists them.

    Not frozen: one is made for each token, and freezing it takes longer than to make it.
    """

    script: Script
    keys: tuple[str, ...]
    args: tuple[Argument, ...] = ()


@dataclass(frozen=True, slots=True)
class On:
    """A command that is sent to a plane's server whatever its arguments are: one without a key (TIME, INFO, PING), or
    one whose key was read from Redis and may be any bytes."""

    plane: Plane
    command: Command


Item = Command | Call | On
Batch = list[Item]


def server_time(plane: Plane) -> On:
    """The clock of the plane's server. Times of the other plane's keys must not be compared with it."""
    return On(plane, ("TIME",))


def server_time_us(reply: Reply) -> int:
    """The reply to `server_time`, in microseconds since 1970. Raises the redis error that stands in its place."""
    if isinstance(reply, Exception):
        raise reply
    seconds, microseconds = reply
    return int(seconds) * 1_000_000 + int(microseconds)


def info(plane: Plane) -> On:
    """What the plane's server says of itself."""
    return On(plane, ("INFO",))


def ping(plane: Plane) -> On:
    """Whether the plane's server answers."""
    return On(plane, ("PING",))


def batch_plane(batch: Sequence[Item]) -> Plane:
    """The plane that all of the batch belong to. Raises MixedPlanesError where they don't all."""
    planes = {item.script.plane for item in batch if isinstance(item, Call)}
    planes.update(plane for item in batch if not isinstance(item, Call) for plane in _planes(item))
    if len(planes) == 1:
        return planes.pop()
    shown = ", ".join(f"{_shown(item)} ({'+'.join(sorted(_planes(item)))})" for item in batch[:8])
    raise MixedPlanesError(f"a batch of one round trip is of one plane, queue or token, but this isn't: {shown}")


def channels_plane(channels: Sequence[str]) -> Plane:
    """The plane that all of the channels belong to. Raises MixedPlanesError where they don't all."""
    planes = set(map(plane_of, channels))
    if len(planes) == 1:
        return planes.pop()
    raise MixedPlanesError(f"channels that one connection subscribes to are of one plane, but these aren't: {channels}")


def _planes(item: Item) -> Iterator[Plane]:
    if isinstance(item, Call):
        yield item.script.plane
    elif isinstance(item, On):
        yield item.plane
    else:
        yield from map(plane_of, _keys(item))


def _keys(command: Command) -> Iterator[str | bytes]:
    name, *arguments = command
    if name in _WITHOUT_KEY:
        raise MixedPlanesError(f"{name} has no key: say whose server it is for, with On(plane, command)")
    if name == "XREAD":
        streams = arguments[arguments.index("STREAMS") + 1 :]
        arguments = streams[: len(streams) // 2]
    elif name not in _ALL_ARGUMENTS:
        arguments = arguments[:1]
    for key in arguments:
        yield key if isinstance(key, str | bytes) else str(key)


def _shown(item: Item) -> str:
    if isinstance(item, Call):
        return item.script.name
    command = item.command if isinstance(item, On) else item
    return " ".join(str(word) for word in command[:2])
