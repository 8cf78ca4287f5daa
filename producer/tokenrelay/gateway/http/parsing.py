"""httptools' request parser for a server that switches to no other protocol: what offers one is read as HTTP/1.1."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final, Protocol

import httptools

if TYPE_CHECKING:
    from collections.abc import Iterable

_OFFER: Final = frozenset({b"upgrade", b"http2-settings"})


class Connection(Protocol):
    """What the parser calls back, and where the request line and the headers then stand: uvicorn's protocol."""

    url: bytes
    headers: list[tuple[bytes, bytes]]


class RequestParser:
    """Feeds one connection's bytes to httptools, and a request that offers an upgrade a second time without the offer.

    httptools takes everything behind the headers of such a request for the other protocol, so its body would be lost;
    a server may ignore the offer (RFC 9110, section 7.8). Callbacks of the first pass must be ignored: see `offered`.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._parser = _parser(connection)

    @property
    def offered(self) -> bool:
        """Whether the request that is being parsed offers an upgrade, and will be parsed again without it."""
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
        """As httptools'. Raises HttpParserError."""
        while True:
            try:
                self._parser.feed_data(data)
            except httptools.HttpParserUpgrade as offer:
                if self._parser.get_method() == b"CONNECT":
                    raise httptools.HttpParserInvalidMethodError("this is no proxy") from None
                data = self._head() + data[offer.args[0] :]
                self._parser = _parser(self._connection)  # the old one takes no more where the request says "close"
            else:
                return

    def _head(self) -> bytes:
        version, method = self._parser.get_http_version().encode(), self._parser.get_method()
        lines = [b"%b %b HTTP/%b" % (method, self._connection.url, version), *_kept(self._connection.headers)]
        return b"\r\n".join([*lines, b"", b""])


def _parser(connection: Connection) -> httptools.HttpRequestParser:
    parser = httptools.HttpRequestParser(connection)
    with contextlib.suppress(AttributeError):  # httptools before 0.6.3
        parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does
    return parser


def _kept(headers: Iterable[tuple[bytes, bytes]]) -> Iterable[bytes]:
    """The header lines without the offer. Raises HttpParserError for a value that isn't one line."""
    for name, value in headers:
        if b"\r" in value or b"\n" in value:
            raise httptools.HttpParserError("a header's value holds a line end")
        if name == b"connection":
            options = [option.strip() for option in value.split(b",")]
            if kept := [option for option in options if option.lower() not in _OFFER]:
                yield b"connection: " + b", ".join(kept)
        elif name not in _OFFER:
            yield b"%b: %b" % (name, value)
