"""A gateway's metrics: names, help texts and sources. docs/metrics.md lists them."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Final

from tokenrelay.shared.metrics import queue_depths
from tokenrelay.shared.metrics.measures import Metric, family, labelled
from tokenrelay.shared.metrics.queue_depths import QueueDepths

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tokenrelay.gateway.core.gateway import Gateway
    from tokenrelay.shared.metrics.measures import Family

INFO: Final = Metric("tokenrelay_gateway_info", "gauge", "Always 1, with the gateway's version.", ("version",))
HTTP_REQUESTS: Final = Metric(
    "tokenrelay_gateway_http_requests_total",
    "counter",
    "HTTP requests, counted when the response starts. Route: its pattern, or none. Status 499: the client disconnected "
    "first.",
    ("route", "method", "status"),
)
REFUSED: Final = Metric(
    "tokenrelay_gateway_refused_requests_total",
    "counter",
    "Requests refused with 429. Code: queue_full, or a limit of the API key.",
    ("code",),
)
READERS: Final = Metric(
    "tokenrelay_gateway_readers",
    "gauge",
    "Clients that are reading a request now, as an event stream or waiting for the whole answer.",
)
FOLLOWED: Final = Metric("tokenrelay_gateway_followed_requests", "gauge", "Requests with at least one reader.")
LEAVING: Final = Metric(
    "tokenrelay_gateway_abandoned_requests",
    "gauge",
    "Non-durable requests whose last reader disconnected, and which are cancelled when the grace period ends.",
)
DISCONNECT_CANCELS: Final = Metric(
    "tokenrelay_gateway_disconnect_cancels_total", "counter", "Requests cancelled because all readers disconnected."
)
FIRST_TOKEN: Final = Metric(
    "tokenrelay_gateway_time_to_first_token_seconds",
    "histogram",
    "Time from submit until this gateway receives the first token, for requests that it was following by then.",
)
REQUEST: Final = Metric(
    "tokenrelay_gateway_request_duration_seconds",
    "histogram",
    "Time from submit until this gateway receives the terminal event, for requests that it was following by then.",
    ("state",),
)
DELIVERY_LAG: Final = Metric(
    "tokenrelay_gateway_delivery_lag_seconds",
    "histogram",
    "Time from an entry's write until this gateway receives it, for the last entry of each read. On Redis's clock, "
    "accurate to half a round trip.",
)
REDIS_ERRORS: Final = Metric(
    "tokenrelay_gateway_redis_errors_total",
    "counter",
    "Redis failures after redis-py's own retries. Use: answer (a client got 503), follow (reading streams), readers "
    "(recording which requests have readers).",
    ("use",),
)
METRICS: Final = (
    INFO, HTTP_REQUESTS, REFUSED, READERS, FOLLOWED, LEAVING, DISCONNECT_CANCELS, FIRST_TOKEN, REQUEST, DELIVERY_LAG,
    REDIS_ERRORS, *queue_depths.METRICS,
)  # fmt: skip


class GatewayMetrics:
    """Collects one gateway's metrics. Queue depths are those of the default model."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        settings = gateway.settings
        self._queues = QueueDepths(settings.urls, settings.model)

    def families(self) -> Iterator[Family]:
        """All of METRICS, without those that need Redis while it's unavailable."""
        gateway, counters = self._gateway, self._gateway.counters
        feeds = list(gateway.hub.feeds.values())
        yield family(INFO, 1, version("tokenrelay"))
        yield labelled(HTTP_REQUESTS, counters.http_requests.items())
        yield labelled(REFUSED, counters.refused.items())
        yield family(READERS, sum(feed.readers for feed in feeds))
        yield family(FOLLOWED, len(feeds))
        yield family(LEAVING, gateway.attachments.abandoned)
        yield labelled(DISCONNECT_CANCELS, counters.disconnect_cancels.items())
        yield family(FIRST_TOKEN, counters.first_token_s)
        yield labelled(REQUEST, counters.request_s.items())
        yield family(DELIVERY_LAG, counters.delivery_lag_s)
        yield labelled(REDIS_ERRORS, counters.redis_errors.items())
        yield from self._queues.families()
