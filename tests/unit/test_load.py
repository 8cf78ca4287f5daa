"""A load's schedule, report and charts: pure functions of a seed and of measurements."""

from __future__ import annotations

import random
import re
from statistics import mean, stdev

import pytest

from tokenrelay.cli.load.chart import bars
from tokenrelay.cli.load.report import report
from tokenrelay.cli.load.run import Outcome
from tokenrelay.cli.load.workload import Arrival, Range, Workload
from tokenrelay.cli.terminal.tables import Percentiles, duration
from tokenrelay.shared.errors import RequestError


def arrivals(seed: int = 7, rate: float = 50.0) -> list[Arrival]:
    return Workload(rate, 40.0, Range(8, 128), Range(4, 64), (), seed).arrivals()


def test_a_seed_draws_the_same_load_again() -> None:
    assert arrivals(7) == arrivals(7)
    assert arrivals(7) != arrivals(8)


def test_arrivals_are_poisson() -> None:
    times = [one.at_s for one in arrivals()]
    gaps = [after - before for before, after in zip(times, times[1:], strict=False)]
    assert times == sorted(times)
    assert 0 < times[0] < times[-1] < 40
    assert mean(gaps) == pytest.approx(1 / 50, rel=0.1)
    assert stdev(gaps) == pytest.approx(mean(gaps), rel=0.1)  # exponential: both are 1 / rate


def test_lengths_are_mixed_and_within_bounds() -> None:
    render = arrivals()
    budgets, prompts = (
        [one.max_new_tokens for one in render],
        [len(re.findall(r"\w+|[.?]", one.prompt)) for one in render],
    )
    assert (min(budgets), max(budgets), min(prompts), max(prompts)) == (8, 128, 4, 64)
    assert sorted(budgets)[len(budgets) // 2] == pytest.approx(32, rel=0.1)  # log-uniform: the geometric mean


def test_ranges() -> None:
    assert Range.parse("x", "8:64") == Range(8, 64)
    assert Range.parse("x", "8") == Range(8, 8)
    assert {Range(3, 3).draw(random.Random(1)) for _ in range(50)} == {3}
    for bad in ("", ":", "8:", ":8", "a:b", "0:3", "9:8", "-1:3", "1:2:3"):
        with pytest.raises(RequestError, match="^x: "):
            Range.parse("x", bad)


def test_latency_counts_from_the_intended_arrival() -> None:
    """A client that is 2 s late includes them in the latencies, and reports that it fell behind."""
    outcome = Outcome(1.0, 3.0, 3.1, 3.2, "completed", 5, [3.1, 3.2], 4.0, [100.0])
    found = report([outcome], {}, seed=1, rate=1, window_s=3.15, stopped=False)
    assert found.ttft_ms.p50 == pytest.approx(2100)
    assert found.total_ms.p50 == pytest.approx(2200)
    assert found.late_ms.p50 == pytest.approx(2000)
    assert found.fell_behind
    assert (found.tokens, found.tokens_per_s) == (2, round(1 / 3.15, 3))  # the second came after the window


def test_percentiles_are_measured_values() -> None:
    assert Percentiles.of([]) == Percentiles(0)
    assert Percentiles.of([3.0, 1.0, 2.0]) == Percentiles(3, 2.0, 3.0, 3.0, 3.0)
    assert Percentiles.of(range(1, 201)) == Percentiles(200, 100, 180, 198, 200)


def test_bars() -> None:
    render = bars([0.0, None, 0.001, 50.0, 100.0], lambda value: f"{value:g}")
    assert [line[10:] for line in render] == ["    █", "    █", "   ██", "  ▁██"]
    assert [line[:10].strip() for line in render] == ["100", "", "", "0"]
    assert bars([], str) == ["      0.0", "", "", "      0.0"]


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (None, "—"),
        (0.0004, "0.4 ms"),
        (0.128, "128 ms"),
        (0.9996, "1.00 s"),
        (4.2, "4.20 s"),
        (99.9, "99.9 s"),
        (99.99, "1m40s"),
        (725, "12m05s"),
        (3599.9, "1h00m"),
        (12_000, "3h20m"),
    ],
)
def test_durations_fit_six_characters(seconds: float | None, shown: str) -> None:
    assert duration(seconds) == shown
    assert len(shown) <= 6
