"""Discards the body of a request that is refused before its body was read."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from starlette.types import Receive

_MOST_BYTES: Final = 64 * 2**20


async def discard_body(receive: Receive, timeout_s: float) -> None:
    """Read and discard the rest of the body, up to a size and a time limit.

    A client that is still writing when the connection closes gets a reset instead of the response.
    """
    size = 0
    with suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            while size < _MOST_BYTES:
                message = await receive()
                size += len(message.get("body", b""))
                if not message.get("more_body"):  # end of the body, or a disconnect
                    return
