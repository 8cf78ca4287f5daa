"""When bytes came to a socket, by the kernel's clock: whoever reads them when."""

from __future__ import annotations

import socket
import struct
import time
from typing import Final

_TIMESPEC: Final = struct.Struct("@qq")
_SO_TIMESTAMPNS: Final = 35
"""Linux's socket option, which Python doesn't name; its control messages have the same number."""


def stamp(connection: socket.socket) -> None:
    """Have the kernel note when bytes come."""
    connection.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)


def received(connection: socket.socket, size: int) -> tuple[float, bytes]:
    """What has come, and the wall clock's time when the last of it did; this moment's where the kernel doesn't say."""
    data, told, _, _ = connection.recvmsg(size, 64)
    for level, kind, given in told:
        if (level, kind) == (socket.SOL_SOCKET, _SO_TIMESTAMPNS):
            seconds, nanoseconds = _TIMESPEC.unpack(given)
            return float(seconds + nanoseconds / 1e9), data
    return time.time(), data
