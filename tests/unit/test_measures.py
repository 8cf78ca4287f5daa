"""Counters and histograms, and their Prometheus exposition."""

from __future__ import annotations

import bisect
import re
import socket
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.redis_servers import free_port
from tests.scrapes import Scrape
from tokenrelay.gateway import metrics as gateway_metrics
from tokenrelay.gateway.streams.counters import GatewayCounters
from tokenrelay.shared.errors import SettingsError
from tokenrelay.shared.metrics import measures
from tokenrelay.shared.metrics.exposition import Exposition
from tokenrelay.shared.metrics.measures import Durations, Histogram, Metric, Tally, labelled
from tokenrelay.shared.wire.entries import State
from tokenrelay.worker import metrics as worker_metrics
from tokenrelay.worker.core.figures import FAILURES, Figures

ROOT = Path(__file__).parents[2]
ALL = {metric.name: metric for metric in (*worker_metrics.METRICS, *gateway_metrics.METRICS)}
BOUNDS = [value for name, value in vars(measures).items() if name.endswith(("_S", "_REQUESTS"))]
SOME = Metric("some_seconds", "histogram", "Some.", ("kind",))
COUNT = Metric("some_total", "counter", "How many.")


def test_a_bound_includes_its_own_value() -> None:
    histogram = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 2.0, 2.5):
        histogram.observe(value)
    assert histogram.cumulative() == [(1.0, 2), (2.0, 4), (float("inf"), 5)]
    assert histogram.sum == 7.5


@given(
    st.lists(st.floats(0, 10, allow_nan=False), max_size=30),
    st.sets(st.floats(0, 10, allow_nan=False), min_size=1, max_size=8),
)
def test_a_histogram_counts_what_sorting_would(values: list[float], bounds: set[float]) -> None:
    histogram = Histogram(tuple(sorted(bounds)))
    for value in values:
        histogram.observe(value)
    ordered = sorted(values)
    expected = [(bound, bisect.bisect_right(ordered, bound)) for bound in (*sorted(bounds), float("inf"))]
    assert histogram.cumulative() == expected


def test_weight_counts_a_value_so_many_times() -> None:
    weighted, repeated = Histogram((1.0, 2.0)), Histogram((1.0, 2.0))
    weighted.observe(1.5, 3)
    for _ in range(3):
        repeated.observe(1.5)
    assert (weighted.counts, weighted.sum) == (repeated.counts, repeated.sum)


def test_a_tally_loses_nothing_between_threads() -> None:
    tally = Tally(("never",))

    def often() -> None:
        for _ in range(5000):
            tally.add("often")

    threads = [threading.Thread(target=often) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert tally.items() == [(("never",), 0), (("often",), 20_000)]


def test_every_end_has_a_series_from_the_start() -> None:
    figures = Figures()
    sources = "".join(path.read_text("utf-8") for path in (ROOT / "worker").rglob("*.py"))
    written = set(re.findall(r'(?:code=|failure\()"(\w+)"', sources))
    assert {"prompt_too_long", "internal_error"} < written <= set(FAILURES)
    assert {("failed", code) for code in FAILURES} <= {labels for labels, _ in figures.ends.items()}
    for durations in (figures.request_s, GatewayCounters().request_s):
        assert {labels for labels, _ in durations.items()} == {(state,) for state in State if state.terminal}


@pytest.mark.parametrize("bounds", BOUNDS)
def test_bounds_rise(bounds: tuple[float, ...]) -> None:
    assert list(bounds) == sorted(set(bounds))


def test_names_and_units_are_by_prometheus_conventions() -> None:
    units = ("_seconds", "_tokens", "_requests", "_ratio", "_info", "_slots", "_workers", "_up", "_readers")
    for name, metric in ALL.items():
        assert re.fullmatch(r"tokenrelay_[a-z_]+", name)
        assert name.endswith("_total") == (metric.kind == "counter"), name
        assert metric.kind == "counter" or name.endswith(units), name
        assert metric.meaning.endswith("."), name
        assert not set(metric.labels) & {"request_id", "owner", "worker", "le", "job", "instance"}, name


def test_what_is_added_is_served() -> None:
    durations, tally = Durations((0.5,)), Tally(())
    port = free_port()
    exposition = Exposition("127.0.0.1", port)
    try:
        exposition.add(lambda: [labelled(SOME, durations.items()), labelled(COUNT, tally.items())])
        assert Scrape(port).value(COUNT) == 0
        durations.observe("a", 0.25)
        durations.observe("b", 4.0)
        tally.add()
        scrape = Scrape(port)
    finally:
        exposition.close()
    assert scrape.value(COUNT) == 1
    assert scrape.samples("some_seconds_bucket", kind="a", le="0.5") == [1]
    assert scrape.samples("some_seconds_bucket", kind="b", le="0.5") == [0]
    assert scrape.samples("some_seconds_bucket", kind="b", le="+Inf") == [1]
    assert scrape.value(SOME, "_sum") == 4.25
    assert scrape.samples("process_resident_memory_bytes")


def test_a_port_that_is_taken_is_an_error_that_names_the_variable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(SettingsError, match="TOKENRELAY_METRICS_PORT"):
        Exposition("127.0.0.1", taken.getsockname()[1])
