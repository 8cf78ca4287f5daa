"""Whether Redis keeps what it's given: looked at once per client, before its first write."""

from __future__ import annotations

from typing import TYPE_CHECKING

from redis.exceptions import ResponseError

from tokenrelay.producer._core.rounds import ask
from tokenrelay.producer._core.sharing import SharedCall
from tokenrelay.shared.redis.connections import check_fit

if TYPE_CHECKING:
    from tokenrelay.producer._core.rounds import AsyncDriver, Steps


def check_redis() -> Steps[None]:
    """Check that this Redis keeps what it's given. Raises RedisUnusable. Skipped where INFO isn't to be had."""
    try:
        (info,) = yield from ask([("INFO",)])
    except ResponseError:  # no right to it, or a double that has none
        return
    check_fit(info)


class AsyncFitness:
    """`check_redis` on asyncio. Many begin at once, and one look is enough for them."""

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
        await self._driver.run(check_redis())
        self._is_fit = True
