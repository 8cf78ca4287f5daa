"""A check that Redis keeps what is written: before a client's first write, and as a process starts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from redis.exceptions import ResponseError

from tokenrelay.producer._core.drivers import connected_driver
from tokenrelay.producer._core.steps import ask
from tokenrelay.shared.redis.commands import info
from tokenrelay.shared.redis.servers import check_fit

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tokenrelay.producer._core.steps import Steps
    from tokenrelay.shared.redis.servers import Urls
    from tokenrelay.shared.wire.keys import Plane


def check_redis(planes: Iterable[Plane]) -> Steps[None]:
    """Check that the planes' servers keep what they're given. Raises RedisUnusable. Skipped where INFO is refused."""
    for plane in planes:
        try:
            (found,) = yield from ask([info(plane)])
        except ResponseError:  # no right to it, or a double that has none
            continue
        check_fit(plane, found)


def check_servers(urls: Urls) -> None:
    """`check_redis` on connections of its own, so that a process fails at start and not at its first request."""
    with connected_driver(urls) as driver:
        driver.run(check_redis(driver.servers.planes))
