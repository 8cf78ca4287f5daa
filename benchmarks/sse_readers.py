"""Many readers of event streams in a separate process, with raw sockets and epoll to keep reading cheap.

Arrival times are the kernel's: when the bytes were in the reader's socket. Sockets are read every few milliseconds and
parsed only at the end, so that the gateway isn't charged with waking a process for each event, as with readers on other
machines.
"""

from __future__ import annotations

import argparse
import gc
import re
import resource
import select
import socket
import time
from collections import defaultdict

from benchmarks.arrivals import received, stamp
from benchmarks.children import Message, answer_lines

_AT_US = re.compile(rb'event: token\n.*?"at_us":(\d+).*?\n\n', re.DOTALL)
_LAST_CHUNK = b"0\r\n\r\n"
_EVERY_S = 0.004
_GIVE_UP_S = 120.0

Arrival = tuple[float, int, bytes]
"""Time, socket, bytes."""


class Readers:
    """Sockets that follow requests at one gateway."""

    def __init__(self) -> None:
        self._sockets: list[socket.socket] = []

    def answer(self, message: Message) -> Message:
        if message["do"] == "connect":
            return self._connect(message)
        return self._read(message["until_ended"])

    def _connect(self, message: Message) -> Message:
        host, port = message["host"], message["port"]
        ids = message["request_ids"]
        wanted = len(self._sockets) + message["readers"] + 64
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        made = []
        for number in range(message["readers"]):
            connection = socket.create_connection((host, port), timeout=30)
            path = f"/requests/{ids[number % len(ids)]}/events"
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: gateway\r\n\r\n".encode())
            made.append(connection)
        for connection in made:
            connection.recv(65_536)  # the headers: it's attached
            connection.setblocking(False)
            stamp(connection)
        self._sockets += made
        return {}

    def _read(self, ended: int) -> Message:
        """Read until so many responses have ended. Returns each token's delay from its append, in milliseconds."""
        epoll, arrivals = select.epoll(), list[Arrival]()
        sockets = {connection.fileno(): connection for connection in self._sockets}
        for number in sockets:
            epoll.register(number, select.EPOLLIN)
        left, give_up_at = ended, time.monotonic() + _GIVE_UP_S
        gc.disable()  # everything is kept, and the garbage collector would scan it repeatedly
        while left > 0 and time.monotonic() < give_up_at:
            time.sleep(_EVERY_S)
            for number, _ in epoll.poll(0, len(sockets)):
                at, data = received(sockets[number], 16_384)
                arrivals.append((at, number, data))
                if not data or data.endswith(_LAST_CHUNK):
                    left -= 1
                    epoll.unregister(number)
        gc.enable()
        epoll.close()
        for connection in self._sockets:
            connection.close()
        self._sockets = []
        return {"delays_ms": sorted(_delays_ms(arrivals)), "unended": left}


def _delays_ms(arrivals: list[Arrival]) -> list[float]:
    """Delays of all tokens, unordered: from append to the arrival that completed the event."""
    delays, rests = [], defaultdict[int, bytes](bytes)
    for at, number, data in arrivals:
        rests[number] += data
        for found in _AT_US.finditer(rests[number]):
            delays.append(at * 1000 - int(found[1]) / 1000)
        rests[number] = rests[number].rpartition(b"\n\n")[2]
    return delays


if __name__ == "__main__":
    argparse.ArgumentParser().parse_args()
    answer_lines(Readers().answer)
