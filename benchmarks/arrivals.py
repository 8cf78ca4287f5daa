"""Kernel receive timestamps of a socket, independent of when the bytes are read."""

from __future__ import annotations

import socket
import struct
import time
from typing import Final

_TIMESPEC: Final = struct.Struct("@qq")
_SO_TIMESTAMPNS: Final = 35
"""Linux's socket option, which Python has no constant for; its control messages have the same number."""


def stamp(connection: socket.socket) -> None:
    """Enable kernel receive timestamps."""
    connection.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)


def received(connection: socket.socket, size: int) -> tuple[float, bytes]:
    """Received bytes, and the wall clock time of the last of them; the current time if the kernel gives none."""
    data, ancillary, _, _ = connection.recvmsg(size, 64)
    for level, kind, given in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, _SO_TIMESTAMPNS):
            seconds, nanoseconds = _TIMESPEC.unpack(given)
            return float(seconds + nanoseconds / 1e9), data
    return time.time(), data
