"""Whether Redis keeps what it's given: looked at once per client, before its first write."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenrelay.producer._core.sharing import SharedCall
from tokenrelay.producer._core.submission import fit

if TYPE_CHECKING:
    from tokenrelay.producer._core.rounds import AsyncDriver


class AsyncFitness:
    """`fit` on asyncio. Many begin at once, and one look is enough for them."""

    def __init__(self, driver: AsyncDriver) -> None:
        self._driver = driver
        self._look = SharedCall(self._look_at_redis)
        self._is_fit = False

    async def check(self) -> None:
        """Raises RedisUnusable; then the next one looks again. Raises WrongEventLoop."""
        self._driver.check_loop()
        if not self._is_fit:
            await self._look.done()

    async def _look_at_redis(self) -> None:
        await self._driver.run(fit())
        self._is_fit = True
