"""What a gateway exposes: the names, and where each number comes from. docs/metrics.md lists them."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Final

from tokenrelay.shared import queue_depths
from tokenrelay.shared.measures import Metric, family, labelled
from tokenrelay.shared.queue_depths import QueueDepths

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tokenrelay.gateway.core.gateway import Gateway
    from tokenrelay.shared.measures import Family

INFO: Final = Metric("tokenrelay_gateway_info", "gauge", "1; what serves.", ("version",))
HTTP_REQUESTS: Final = Metric(
    "tokenrelay_gateway_http_requests_total",
    "counter",
    "HTTP requests whose answer has begun. Route: its pattern, or none. Status 499: the client left before.",
    ("route", "method", "status"),
)
REFUSED: Final = Metric(
    "tokenrelay_gateway_refused_requests_total",
    "counter",
    "Requests that were answered 429. Code: queue_full, or one of the API key's limits.",
    ("code",),
)
READERS: Final = Metric(
    "tokenrelay_gateway_readers",
    "gauge",
    "Clients that read a request now, as event streams or for whole answers.",
)
FOLLOWED: Final = Metric("tokenrelay_gateway_followed_requests", "gauge", "Requests that have such readers.")
LEAVING: Final = Metric(
    "tokenrelay_gateway_abandoned_requests",
    "gauge",
    "Requests that aren't durable whose last reader has left, and which will be cancelled when the grace is over.",
)
DISCONNECT_CANCELS: Final = Metric(
    "tokenrelay_gateway_disconnect_cancels_total", "counter", "Requests cancelled because their readers had left."
)
FIRST_TOKEN: Final = Metric(
    "tokenrelay_gateway_time_to_first_token_seconds",
    "histogram",
    "From submit to this gateway's having the first token, of requests that it followed by then, or at once.",
)
REQUEST: Final = Metric(
    "tokenrelay_gateway_request_duration_seconds",
    "histogram",
    "From submit to this gateway's having the end, of requests that it followed by then, or at once.",
    ("state",),
)
DELIVERY_LAG: Final = Metric(
    "tokenrelay_gateway_delivery_lag_seconds",
    "histogram",
    "From an entry's being written to this gateway's having it, the last one of each read. By Redis's clock, as well "
    "as the gateway can tell it: to half a round trip.",
)
REDIS_ERRORS: Final = Metric(
    "tokenrelay_gateway_redis_errors_total",
    "counter",
    "Times that Redis was away or refused, after redis-py's own retries. Use: answer (a client was told 503), follow, "
    "readers.",
    ("use",),
)
METRICS: Final = (
    INFO, HTTP_REQUESTS, REFUSED, READERS, FOLLOWED, LEAVING, DISCONNECT_CANCELS, FIRST_TOKEN, REQUEST, DELIVERY_LAG,
    REDIS_ERRORS, *queue_depths.METRICS,
)  # fmt: skip


class GatewayMetrics:
    """Reads one gateway's numbers. The queues are those of the model that requests ask when they name none."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        settings = gateway.settings
        self._queues = QueueDepths(settings.redis_url.get_secret_value(), settings.model)

    def families(self) -> Iterator[Family]:
        """Everything in METRICS, except what Redis doesn't answer."""
        gateway, figures = self._gateway, self._gateway.figures
        feeds = list(gateway.hub.feeds.values())
        yield family(INFO, 1, version("tokenrelay"))
        yield labelled(HTTP_REQUESTS, figures.http_requests.items())
        yield labelled(REFUSED, figures.refused.items())
        yield family(READERS, sum(feed.readers for feed in feeds))
        yield family(FOLLOWED, len(feeds))
        yield family(LEAVING, gateway.attachments.leaving)
        yield labelled(DISCONNECT_CANCELS, figures.disconnect_cancels.items())
        yield family(FIRST_TOKEN, figures.first_token_s)
        yield labelled(REQUEST, figures.request_s.items())
        yield family(DELIVERY_LAG, figures.delivery_lag_s)
        yield labelled(REDIS_ERRORS, figures.redis_errors.items())
        yield from self._queues.families()
