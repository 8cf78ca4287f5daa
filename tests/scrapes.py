"""Scrapes of /metrics for tests, parsed by prometheus_client's parser."""

from __future__ import annotations

import urllib.request
from typing import TYPE_CHECKING

from prometheus_client.parser import text_string_to_metric_families

from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tokenrelay.shared.metrics.measures import Metric

OF_THE_PROCESS = ("process_", "python_")


class Scrape:
    """One response of /metrics."""

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        with urllib.request.urlopen(f"http://{host}:{port}/metrics", timeout=60) as response:
            self.text = response.read().decode()
        self._families = list(text_string_to_metric_families(self.text))

    def samples(self, name: str, **labels: str) -> list[float]:
        """The values of all samples of this name with at least these labels."""
        return [
            sample.value
            for family in self._families
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        ]

    def value(self, metric: Metric, part: str = "", **labels: str) -> float:
        """The sum of a metric's samples with these labels; `part`: _count or _sum of a histogram."""
        return sum(self.samples(metric.name + part, **labels))

    def observations(self, metric: Metric, **labels: str) -> int:
        return int(self.value(metric, "_count", **labels))

    @property
    def names(self) -> set[str]:
        """Our families' names, as docs/metrics.md has them."""
        ours = (family for family in self._families if not family.name.startswith(OF_THE_PROCESS))
        return {f"{family.name}_total" if family.type == "counter" else family.name for family in ours}


def names_of(metrics: Iterable[Metric]) -> set[str]:
    return {metric.name for metric in metrics}


def scrape_with(port: int, metric: Metric, at_least: float = 1) -> Scrape:
    """The first scrape in which the metric has this sum."""
    found = Scrape(port)

    def there() -> bool:
        nonlocal found
        found = Scrape(port)
        return found.value(metric) >= at_least

    wait_until(there)
    return found
