"""What a process counts of itself: plain numbers that cost the one who counts next to nothing. Knows no Prometheus.

A `Metric` is a name with its meaning; docs/metrics.md is made of them. How they get to Prometheus is exposition.py's.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

QUEUE_WAIT_S: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
FIRST_TOKEN_S: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0)
INTER_TOKEN_S: Final = (0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.25, 0.5, 1.0, 2.5)
REQUEST_S: Final = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0)
LAG_S: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
BATCH_REQUESTS: Final = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0)


@dataclass(frozen=True, slots=True)
class Metric:
    """What one name of an exposition means. A counter's ends in `_total`, and every other in its unit."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    meaning: str
    labels: tuple[str, ...] = ()


class Histogram:
    """How often values came that were at most each of `bounds`; for one writer at a time, whoever reads."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        """Of each bound alone, not of those below it; the last one's are above all bounds."""
        self.sum = 0.0

    def observe(self, value: float, weight: int = 1) -> None:
        """Count `value`, as if it had come `weight` times."""
        self.counts[bisect_left(self.bounds, value)] += weight
        self.sum += value * weight

    def cumulative(self) -> list[tuple[float, int]]:
        """(bound, values up to it), the infinite bound last."""
        total, rows = 0, []
        for bound, count in zip((*self.bounds, float("inf")), self.counts.copy(), strict=True):
            total += count
            rows.append((bound, total))
        return rows


class Tally:
    """Counts by label values, from any thread: for what happens once a request, not once a token.

    `known` labels are there with 0 from the start: Prometheus sees no increase in a series that begins with 1.
    """

    def __init__(self, *known: tuple[str, ...]) -> None:
        self._counts: dict[tuple[str, ...], int] = dict.fromkeys(known, 0)
        self._lock = threading.Lock()

    def add(self, *labels: str, amount: int = 1) -> None:
        with self._lock:
            self._counts[labels] = self._counts.get(labels, 0) + amount

    def get(self, *labels: str) -> int:
        return self._counts.get(labels, 0)

    def items(self) -> list[tuple[tuple[str, ...], int]]:
        with self._lock:
            return sorted(self._counts.items())


class Durations:
    """A histogram for each value of one label, from any thread; those of `known` are there from the start."""

    def __init__(self, bounds: tuple[float, ...], *known: str) -> None:
        self._bounds = bounds
        self._histograms = {label: Histogram(bounds) for label in known}
        self._lock = threading.Lock()

    def observe(self, label: str, value: float) -> None:
        with self._lock:
            self._histograms.setdefault(label, Histogram(self._bounds)).observe(value)

    def items(self) -> list[tuple[tuple[str, ...], Histogram]]:
        with self._lock:
            return [((label,), histogram) for label, histogram in sorted(self._histograms.items())]


Sample = tuple[tuple[str, ...], float | Histogram]
"""Label values, in the order of the metric's labels, and what was counted."""
Family = tuple[Metric, list[Sample]]


def family(metric: Metric, value: float | Histogram, *labels: str) -> Family:
    """A metric with one sample."""
    return metric, [(labels, value)]


def labelled(metric: Metric, items: Iterable[tuple[tuple[str, ...], float | Histogram]], *before: str) -> Family:
    """A metric with a sample for each item; the labels `before` go first."""
    return metric, [((*before, *labels), value) for labels, value in items]


def names(metrics: Iterable[Metric]) -> Iterator[str]:
    """Every name that a sample of the metrics may have."""
    for metric in metrics:
        if metric.kind == "histogram":
            yield from (metric.name + end for end in ("_bucket", "_count", "_sum"))
        else:
            yield metric.name
