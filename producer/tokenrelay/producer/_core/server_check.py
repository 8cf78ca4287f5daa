"""A check that Redis keeps what is written, once per client, before its first write."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from redis.exceptions import ResponseError

from tokenrelay.producer._core.steps import ask
from tokenrelay.shared.redis.commands import info
from tokenrelay.shared.redis.servers import check_fit

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tokenrelay.producer._core.drivers import AsyncDriver
    from tokenrelay.producer._core.steps import Steps
    from tokenrelay.shared.wire.keys import Plane


def check_redis(planes: Iterable[Plane]) -> Steps[None]:
    """Check that the planes' servers keep what they're given. Raises RedisUnusable. Skipped where INFO is refused."""
    for plane in planes:
        try:
            (found,) = yield from ask([info(plane)])
        except ResponseError:  # no right to it, or a double that has none
            continue
        check_fit(plane, found)


class AsyncServerCheck:
    """`check_redis` on asyncio: a single flight for all concurrent callers."""

    def __init__(self, driver: AsyncDriver) -> None:
        self._driver = driver
        self._is_fit = False
        self._check: asyncio.Task[None] | None = None

    async def check(self) -> None:
        """Raises RedisUnusable; then the next call checks again. Raises WrongEventLoop."""
        self._driver.check_loop()
        if self._is_fit:
            return
        if self._check is None or self._check.done():
            self._check = asyncio.create_task(self._driver.run(check_redis(self._driver.servers.planes)))
            self._check.add_done_callback(self._note)
        await asyncio.shield(self._check)  # a caller that is cancelled takes nobody's check along

    def _note(self, check: asyncio.Task[None]) -> None:
        self._is_fit = not check.cancelled() and check.exception() is None
