"""Malformed data in Redis: a gateway's reader gets an error, and other readers are unaffected."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from hypothesis import given

from tests.scribbles import FEW, Scribble, erase, examples, scribble, scribbles
from tests.workers import submit
from tokenrelay.producer._core.drivers import Driver
from tokenrelay.producer._core.endings import cancel

if TYPE_CHECKING:
    from redis import Redis

    from tests.gateway.live import LiveGateway
    from tokenrelay.shared.redis.batches import Pipeline

NOW: Final = datetime.now(UTC)
ROUTES: Final = (
    "/requests/ID",
    "/requests/ID/trace",
    "/requests/ID/events",
    "/v1/responses/ID",
    "/v1/models",
    "/config.json",
)


def check_the_gateway(redis: Redis, pipeline: Pipeline, gateway: LiveGateway, chosen: list[Scribble]) -> None:
    followed, sick = submit(pipeline, NOW, deadline_s=60), submit(pipeline, NOW, deadline_s=60)
    with gateway.client() as http, http.stream("GET", f"/requests/{followed}/events") as healthy:
        scribble(redis, sick, chosen)
        for route in ROUTES:
            with http.stream("GET", route.replace("ID", sick)) as answer:
                assert answer.status_code < 500, (route, answer.read())
                if "events" not in route and answer.status_code >= 400:
                    answer.read()
                    assert answer.json()["error"]["message"], route
        assert http.get("/health").status_code == 200
        Driver(redis).run(cancel(followed))
        assert "cancelled" in "".join(healthy.iter_text())
    erase(redis, sick, followed)


@FEW
@given(chosen=scribbles)
@examples
def test_a_gateway_serves_the_others(
    redis: Redis, pipeline: Pipeline, standing_gateway: LiveGateway, chosen: list[Scribble]
) -> None:
    check_the_gateway(redis, pipeline, standing_gateway, chosen)
