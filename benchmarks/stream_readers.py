"""Many readers blocked in Redis, in a separate process, with raw sockets and epoll to keep reading cheap.

Each reads one stream as a consumer does, with XREAD BLOCK from its last entry. Times are the kernel's: when a reply was
in the reader's socket. Replies are parsed only at the end.
"""

from __future__ import annotations

import argparse
import re
import selectors
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, cast

from benchmarks.arrivals import received, stamp
from benchmarks.children import Message, answer_lines

if TYPE_CHECKING:
    from collections.abc import Sequence

_BEFORE_TOKENS: Final = "0-9"
_ENTRY_ID: Final = re.compile(rb"\r\n(\d+-0)\r\n")
_AT_US: Final = re.compile(rb"at_us\r\n\$\d+\r\n(\d+)\r\n")


@dataclass(slots=True)
class Reader:
    """One connection and its stream."""

    connection: socket.socket
    stream: str

    def ask(self, after: str) -> None:
        parts = ("XREAD", "BLOCK", "0", "STREAMS", self.stream, after)
        packed = "".join(f"${len(part)}\r\n{part}\r\n" for part in parts)
        self.connection.sendall(f"*{len(parts)}\r\n{packed}".encode())


class Readers:
    """Answers `connect` (host, port, streams, readers) and `read` (tokens: of each stream)."""

    def __init__(self) -> None:
        self._readers: list[Reader] = []

    def answer(self, message: Message) -> Message:
        if message["do"] == "connect":
            return self._connect(message["host"], message["port"], message["streams"], message["readers"])
        return self._read(f"{message['tokens']}-0".encode())

    def _connect(self, host: str, port: int, streams: Sequence[str], readers: int) -> Message:
        for number in range(readers):
            reader = Reader(socket.create_connection((host, port), timeout=30), streams[number % len(streams)])
            stamp(reader.connection)
            reader.ask(_BEFORE_TOKENS)
            self._readers.append(reader)
        return {}

    def _read(self, last: bytes) -> Message:
        """Read up to every stream's entry `last`. Returns each entry's delay from its append, in milliseconds."""
        arrivals: list[tuple[float, bytes]] = []
        with selectors.DefaultSelector() as selector:
            for reader in self._readers:
                selector.register(reader.connection, selectors.EVENT_READ, reader)
            while selector.get_map():
                for key, _ in selector.select():
                    reader = cast("Reader", key.data)
                    at, data = received(reader.connection, 65_536)
                    arrivals.append((at, data))
                    newest = _ENTRY_ID.findall(data)[-1]
                    if newest == last:
                        selector.unregister(reader.connection)
                    else:
                        reader.ask(newest.decode())
        for reader in self._readers:
            reader.connection.close()
        self._readers = []
        delays = [at * 1000 - int(at_us) / 1000 for at, data in arrivals for at_us in _AT_US.findall(data)]
        return {"delays_ms": sorted(delays)}


if __name__ == "__main__":
    argparse.ArgumentParser().parse_args()
    answer_lines(Readers().answer)
