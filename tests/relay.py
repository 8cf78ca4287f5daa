"""A TCP relay in front of a Redis server that records its clients' commands by round trip."""

from __future__ import annotations

import re
import select
import socket
import threading
from typing import Final, Self

_COMMAND: Final = re.compile(rb"\*\d+\r\n\$\d+\r\n([A-Za-z]+)\r\n")


class CountingRelay:
    """Listens on 127.0.0.1:`port` while the `with` block lasts."""

    def __init__(self, upstream: int) -> None:
        self._upstream = upstream
        self._asked: list[bytearray] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._threads = [threading.Thread(target=self._accept, daemon=True)]

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(10)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def forget(self) -> None:
        self._asked.clear()

    @property
    def round_trips(self) -> list[list[str]]:
        """The commands of each: what went out on one connection between two replies on it. Without those that clients
        send by themselves (a lone TIME, what a new connection begins with)."""
        trips = [[name.decode().upper() for name in _COMMAND.findall(asked)] for asked in list(self._asked)]
        return [trip for trip in trips if not set(trip) <= {"TIME", "CLIENT", "HELLO", "PING", "SUBSCRIBE"}]

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self._threads.append(threading.Thread(target=self._relay, args=(client,), daemon=True))
            self._threads[-1].start()

    def _relay(self, client: socket.socket) -> None:
        with client, socket.create_connection(("127.0.0.1", self._upstream)) as server:
            asked: bytearray | None = None
            while True:
                for ready in select.select([client, server], [], [])[0]:
                    data = ready.recv(65_536)
                    if not data:
                        return
                    if ready is server:
                        asked = None
                        client.sendall(data)
                        continue
                    if asked is None:
                        asked = bytearray()
                        self._asked.append(asked)
                    asked += data
                    server.sendall(data)
