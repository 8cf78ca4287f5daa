"""Writing pieces of a response's body past ASGI: an extension that our protocol offers and event streams use.

ASGI's `send` is a coroutine of the reader's own task. To wake that task, step through the layers between it and the
socket, and frame the same bytes once more takes three times as long as the write itself, which is what counts where a
token goes to a thousand readers. Under a server without the extension they are served by `send`, as ever.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

EXTENSION: Final = "tokenrelay.chunks"
"""In the ASGI scope's `extensions`; its `write` takes a framed chunk, and says whether it wrote it: see `writer`; its
`abort` drops the connection: see `aborter`."""


def framed(body: bytes) -> bytes:
    """A chunk of a body with `Transfer-Encoding: chunked`: RFC 9112, section 7.1. An empty one would end the body."""
    return b"%x\r\n%b\r\n" % (len(body), body)


def writer(scope: Mapping[str, Any]) -> Callable[[bytes], bool]:
    """What writes chunks to the client of a response, from the response's start until its end, never waiting.

    It refuses, having written nothing, while the client is behind or once it's gone; always under a server that doesn't
    offer the extension. A body with a Content-Length must not be written so.
    """
    offered: Callable[[bytes], bool] | None = (scope.get("extensions") or {}).get(EXTENSION, {}).get("write")
    return offered or _refuse


def aborter(scope: Mapping[str, Any]) -> Callable[[], None]:
    """What closes the connection of a client that takes nothing, without waiting for it to take what was written."""
    offered: Callable[[], None] | None = (scope.get("extensions") or {}).get(EXTENSION, {}).get("abort")
    return offered or _wait


def _wait() -> None:
    """The server closes the connection in its own way."""


def _refuse(_: bytes) -> bool:
    return False
