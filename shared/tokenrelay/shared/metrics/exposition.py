"""`/metrics` over HTTP: what a process counted, in Prometheus's format, on a port of its own.

The only module that needs prometheus_client; it is imported where a port is set, by a process that brings the library.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from tokenrelay.shared.errors import SettingsError
from tokenrelay.shared.metrics.measures import Histogram

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from prometheus_client import Metric as PrometheusFamily

    from tokenrelay.shared.metrics.measures import Family


class Exposition:
    """Serves, from a daemon thread, the process's memory and CPU time, and what is added."""

    def __init__(self, host: str, port: int) -> None:
        """Raises SettingsError where the port can't be listened on."""
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        try:
            self._server, self._thread = start_http_server(port, host, self._registry)
        except (OSError, OverflowError) as error:
            message = f"TOKENRELAY_METRICS_HOST, TOKENRELAY_METRICS_PORT: can't listen on {host}:{port}: {error}"
            raise SettingsError(message) from None

    def add(self, read: Callable[[], Iterable[Family]]) -> None:
        """Expose what `read` gives, asked anew at each scrape, in the scrape's own thread."""
        self._registry.register(_Source(read))

    def close(self) -> None:
        """Listen no more."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Source(Collector):
    def __init__(self, read: Callable[[], Iterable[Family]]) -> None:
        self._read = read

    def describe(self) -> list[PrometheusFamily]:
        """Nothing: the registry would otherwise scrape Redis to learn the names."""
        return []

    def collect(self) -> Iterator[PrometheusFamily]:
        return map(_exposed, self._read())


def _exposed(family: Family) -> PrometheusFamily:
    metric, samples = family
    if metric.kind == "histogram":
        histograms = HistogramMetricFamily(metric.name, metric.meaning, labels=metric.labels)
        for labels, value in samples:
            assert isinstance(value, Histogram)
            buckets = [(_spelled(bound), count) for bound, count in value.cumulative()]
            histograms.add_metric(labels, buckets, value.sum)
        return histograms
    kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
    numbers = kind(metric.name, metric.meaning, labels=metric.labels)
    for labels, value in samples:
        assert not isinstance(value, Histogram)
        numbers.add_metric(labels, value)
    return numbers


def _spelled(bound: float) -> str:
    """As prometheus_client spells the bounds of its own histograms: 0.5, 1.0, +Inf."""
    return str(floatToGoString(bound))  # type: ignore[no-untyped-call]
