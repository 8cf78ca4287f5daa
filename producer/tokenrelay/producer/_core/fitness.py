"""Whether Redis keeps what it's given: looked at once per client, before its first write."""

from __future__ import annotations

from typing import TYPE_CHECKING

from redis.exceptions import ResponseError

from tokenrelay.producer._core.rounds import ask
from tokenrelay.producer._core.sharing import SharedCall
from tokenrelay.shared.redis.commands import info
from tokenrelay.shared.redis.servers import check_fit

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tokenrelay.producer._core.rounds import AsyncDriver, Steps
    from tokenrelay.shared.wire.keys import Plane


def check_redis(planes: Iterable[Plane]) -> Steps[None]:
    """Check that the planes' servers keep what they're given. Raises RedisUnusable. Skipped where INFO is refused."""
    for plane in planes:
        try:
            (found,) = yield from ask([info(plane)])
        except ResponseError:  # no right to it, or a double that has none
            continue
        check_fit(plane, found)


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
        await self._driver.run(check_redis(self._driver.servers.planes))
        self._is_fit = True
