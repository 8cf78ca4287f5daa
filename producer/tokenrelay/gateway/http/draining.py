"""Bodies of requests that are refused before they're read."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from starlette.types import Receive

_MOST_BYTES: Final = 64 * 2**20


async def drain(receive: Receive, timeout_s: float) -> None:
    """Read and drop the rest of the body, within bounds.

    A client that still writes when the connection closes is told a reset, and not the answer.
    """
    size = 0
    with suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            while size < _MOST_BYTES:
                message = await receive()
                size += len(message.get("body", b""))
                if not message.get("more_body"):  # its end, or the client's
                    return
