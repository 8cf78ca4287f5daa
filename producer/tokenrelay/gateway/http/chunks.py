"""An ASGI extension that writes chunks of a response body directly to the transport, used by event streams.

ASGI's `send` is a coroutine of the reader's own task. Waking that task, passing the middleware layers and framing the
bytes again takes three times as long as the write itself, which matters when one token goes to a thousand readers.
Under a server without the extension, event streams use `send`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

EXTENSION: Final = "tokenrelay.chunks"
"""Key in the ASGI scope's `extensions`. Its value has `write` (see `chunk_writer`) and `abort` (see
`connection_aborter`)."""


def frame_chunk(body: bytes) -> bytes:
    """`body` framed as one chunk (RFC 9112, section 7.1). `body` must not be empty: an empty chunk ends the body."""
    return b"%x\r\n%b\r\n" % (len(body), body)


def chunk_writer(scope: Mapping[str, Any]) -> Callable[[bytes], bool]:
    """A function that writes one framed chunk without blocking, between the response's start and its end.

    It returns False and writes nothing if the write buffer is full, the client has disconnected, or the server lacks
    the extension. Not for bodies with a Content-Length.
    """
    offered: Callable[[bytes], bool] | None = (scope.get("extensions") or {}).get(EXTENSION, {}).get("write")
    return offered or _refuse


def connection_aborter(scope: Mapping[str, Any]) -> Callable[[], None]:
    """A function that closes the connection at once, without flushing the write buffer."""
    offered: Callable[[], None] | None = (scope.get("extensions") or {}).get(EXTENSION, {}).get("abort")
    return offered or _no_op


def _no_op() -> None:
    """The server closes the connection after the response."""


def _refuse(_: bytes) -> bool:
    return False
