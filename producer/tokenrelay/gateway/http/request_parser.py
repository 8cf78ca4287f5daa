"""httptools' request parser for a server without protocol upgrades: a request with an Upgrade header stays HTTP/1.1."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final, Protocol

import httptools

if TYPE_CHECKING:
    from collections.abc import Iterable

_UPGRADE: Final = frozenset({b"upgrade", b"http2-settings"})


class Connection(Protocol):
    """uvicorn's protocol object: receives the parser's callbacks, and holds the URL and headers parsed so far."""

    url: bytes
    headers: list[tuple[bytes, bytes]]


class RequestParser:
    """Feeds one connection's bytes to httptools. A request with an Upgrade header is parsed again without it.

    httptools treats everything after the headers of such a request as the other protocol, so the body would be lost. A
    server may ignore Upgrade (RFC 9110, section 7.8). Callbacks of the first pass must be ignored: see `will_reparse`.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._parser = _parser(connection)

    @property
    def will_reparse(self) -> bool:
        """Whether the current request has an Upgrade header and will be parsed again without it."""
        return self._parser.should_upgrade() and self._parser.get_method() != b"CONNECT"

    def should_upgrade(self) -> bool:
        return False

    def should_keep_alive(self) -> bool:
        return self._parser.should_keep_alive()

    def get_http_version(self) -> str:
        return self._parser.get_http_version()

    def get_method(self) -> bytes:
        return self._parser.get_method()

    def feed_data(self, data: bytes) -> None:
        """As in httptools. Raises HttpParserError."""
        while True:
            try:
                self._parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                if self._parser.get_method() == b"CONNECT":
                    raise httptools.HttpParserInvalidMethodError("CONNECT isn't supported") from None
                data = self._head() + data[upgrade.args[0] :]
                self._parser = _parser(self._connection)  # the old one stops after "Connection: close"
            else:
                return

    def _head(self) -> bytes:
        version, method = self._parser.get_http_version().encode(), self._parser.get_method()
        lines = [
            b"%b %b HTTP/%b" % (method, self._connection.url, version),
            *_without_upgrade(self._connection.headers),
        ]
        return b"\r\n".join([*lines, b"", b""])


def _parser(connection: Connection) -> httptools.HttpRequestParser:
    parser = httptools.HttpRequestParser(connection)
    with contextlib.suppress(AttributeError):  # httptools before 0.6.3
        parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does
    return parser


def _without_upgrade(headers: Iterable[tuple[bytes, bytes]]) -> Iterable[bytes]:
    """The header lines without Upgrade. Raises HttpParserError for a value with a line end."""
    for name, value in headers:
        if b"\r" in value or b"\n" in value:
            raise httptools.HttpParserError("a header's value holds a line end")
        if name == b"connection":
            options = [option.strip() for option in value.split(b",")]
            if kept := [option for option in options if option.lower() not in _UPGRADE]:
                yield b"connection: " + b", ".join(kept)
        elif name not in _UPGRADE:
            yield b"%b: %b" % (name, value)
