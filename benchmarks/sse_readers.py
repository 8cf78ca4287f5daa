"""Many readers of event streams, in a process of their own: raw sockets and epoll, so that reading costs little.

Each arrival's time is taken when the kernel gives it, and looked at only when all is read: what is measured is the
gateway, and how late this process is comes on top.
"""

from __future__ import annotations

import argparse
import re
import resource
import selectors
import socket
import time
from typing import Any

from benchmarks.children import Message, answer_lines

_AT_US = re.compile(rb'event: token\n.*?"at_us":(\d+)', re.DOTALL)


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
        wanted = message["readers"] + 64
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        for number in range(message["readers"]):
            connection = socket.create_connection((host, port), timeout=30)
            path = f"/requests/{ids[number % len(ids)]}/events"
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: gateway\r\n\r\n".encode())
            self._sockets.append(connection)
        for connection in self._sockets:
            connection.recv(65_536)  # the headers: it's attached
            connection.setblocking(False)
        return {}

    def _read(self, ended: int) -> Message:
        """Read until so many have had a terminal event; each token's delay from its append, milliseconds."""
        arrivals: list[tuple[float, bytes]] = []
        selector = selectors.DefaultSelector()
        for connection in self._sockets:
            selector.register(connection, selectors.EVENT_READ)
        left = ended
        give_up_at = time.monotonic() + 120
        while left > 0 and time.monotonic() < give_up_at:
            for key, _ in selector.select(1.0):
                readable: Any = key.fileobj
                data = readable.recv(262_144)
                arrivals.append((time.time(), data))
                if not data or b"event: incomplete" in data or b"event: completed" in data:
                    left -= 1
                    selector.unregister(readable)
        delays = [at * 1000 - int(at_us) / 1000 for at, data in arrivals for at_us in _AT_US.findall(data)]
        for connection in self._sockets:
            connection.close()
        self._sockets = []
        return {"delays_ms": sorted(delays), "unended": left}


if __name__ == "__main__":
    argparse.ArgumentParser().parse_args()
    answer_lines(Readers().answer)
