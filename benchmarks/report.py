"""Results as a table, JSON, a PNG, and the tables in docs/performance.md. Knows no benchmark."""

from __future__ import annotations

import json
import re
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Measurement:
    """One measured quantity with a value per round. The result is the median, or the worst round if all must comply."""

    group: str
    name: str
    unit: str
    values: tuple[float, ...]
    bound: Literal["≥", "≤", ""] = ""
    target: float = 0.0
    note: str = ""
    judged_by: Literal["median", "worst"] = "median"
    line: str = ""
    """The line's name, if this is a point of a line."""
    at: float = 0.0
    """The position on the line: the amount of the varied quantity."""
    modelled: bool = False
    """Whether it used `--model`."""

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def judged(self) -> float:
        """The result: the median or the worst value."""
        if self.judged_by == "median":
            return self.median
        return min(self.values) if self.bound == "≥" else max(self.values)

    @property
    def spread(self) -> str:
        """The minimum and maximum over the rounds."""
        return f"{_short(min(self.values))} – {_short(max(self.values))}" if len(self.values) > 1 else ""

    @property
    def goal(self) -> str:
        return f"{self.bound} {_short(self.target)}" if self.bound else ""

    @property
    def verdict(self) -> str:
        if not self.bound:
            return ""
        met = self.judged >= self.target if self.bound == "≥" else self.judged <= self.target
        return "met" if met else "missed"

    def cells(self) -> tuple[str, ...]:
        shown = _short(self.judged) if self.judged_by == "median" else f"worst {_short(self.judged)}"
        return self.name, shown, self.unit, self.spread, self.goal, self.verdict, self.note


HEADINGS = ("what", "median", "unit", "rounds", "target", "", "note")


def _short(value: float) -> str:
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def print_tables(measurements: Sequence[Measurement]) -> None:
    console = Console(width=150)
    for group in _groups(measurements):
        table = Table(*HEADINGS, title=group, title_justify="left")
        for measurement in measurements:
            if measurement.group == group:
                table.add_row(*measurement.cells())
        console.print(table)


def write_json(file: Path, measurements: Sequence[Measurement], conditions: dict[str, str]) -> None:
    rows = [
        {
            "group": measurement.group,
            "name": measurement.name,
            "median": measurement.median,
            "judged_by": measurement.judged_by,
            "judged": measurement.judged,
            "unit": measurement.unit,
            "values": measurement.values,
            "target": measurement.goal,
            "verdict": measurement.verdict,
            "note": measurement.note,
        }
        for measurement in measurements
    ]
    file.write_text(json.dumps({"conditions": conditions, "figures": rows}, indent=1, ensure_ascii=False) + "\n")


def write_png(file: Path, measurements: Sequence[Measurement]) -> None:
    """Plot tokens per second of every contender: bars are medians, lines the rounds' range."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    rates = [measurement for measurement in measurements if measurement.unit == "tokens/s"]
    if not rates:
        return
    groups = _groups(rates)
    canvas, plots = pyplot.subplots(max(len(groups), 1), 1, figsize=(9, 1.2 + 2.6 * len(groups)), squeeze=False)
    for plot, group in zip(plots[:, 0], groups, strict=False):
        shown = [measurement for measurement in rates if measurement.group == group]
        low = [measurement.median - min(measurement.values) for measurement in shown]
        high = [max(measurement.values) - measurement.median for measurement in shown]
        names = [measurement.name for measurement in shown]
        plot.barh(
            names, [measurement.median for measurement in shown], xerr=[low, high], color="#4c72b0", ecolor="#333333"
        )
        plot.invert_yaxis()
        plot.set_title(group, loc="left", fontsize=10)
        plot.set_xlabel("tokens/s")
    canvas.tight_layout()
    canvas.savefig(file, dpi=110)
    pyplot.close(canvas)


def write_growth_png(file: Path, measurements: Sequence[Measurement]) -> None:
    """One plot per group and unit, one line per quantity: the medians, with the rounds' range shaded."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    points = [measurement for measurement in measurements if measurement.line]
    panels = list(dict.fromkeys((measurement.group, measurement.unit) for measurement in points))
    if not panels:
        return
    rows = (len(panels) + 1) // 2
    canvas, plots = pyplot.subplots(rows, 2, figsize=(11, 3.1 * rows), squeeze=False)
    for plot, (group, unit) in zip(plots.flat, panels, strict=False):
        shown = [measurement for measurement in points if (measurement.group, measurement.unit) == (group, unit)]
        for line in dict.fromkeys(measurement.line for measurement in shown):
            of_line = [measurement for measurement in shown if measurement.line == line]
            at = [measurement.at for measurement in of_line]
            plot.plot(at, [measurement.median for measurement in of_line], marker="o", markersize=3, label=line)
            low, high = ([pick(measurement.values) for measurement in of_line] for pick in (min, max))
            plot.fill_between(at, low, high, alpha=0.2)
        plot.set(xscale="log", xlabel=group.removeprefix("growth: "), ylabel=unit)
        plot.set_ylim(bottom=0)
        plot.legend(fontsize=8)
    for plot in list(plots.flat)[len(panels) :]:
        plot.remove()
    canvas.tight_layout()
    canvas.savefig(file, dpi=110)
    pyplot.close(canvas)


def refresh_page(page: Path, measurements: Sequence[Measurement], conditions: dict[str, str]) -> None:
    """Replace the tables between the page's markers `<!-- bench: GROUP -->` and `<!-- end -->`; keep other groups.

    Each table states its conditions, since other tables may be from other runs.
    """
    text = page.read_text("utf-8")
    for group in _groups(measurements):
        shown = [measurement for measurement in measurements if measurement.group == group]
        measured_under = {
            name: value for name, value in conditions.items() if name != "model" or any(f.modelled for f in shown)
        }
        text = _replaced(text, group, f"{_markdown(shown)}\n\n*{'; '.join(measured_under.values())}*")
    page.write_text(text, "utf-8")


def _replaced(text: str, marker: str, content: str) -> str:
    pattern = re.compile(rf"(<!-- bench: {re.escape(marker)} -->\n).*?(<!-- end -->)", re.DOTALL)
    return pattern.sub(lambda found: f"{found[1]}\n{content}\n\n{found[2]}", text)


def _markdown(measurements: Sequence[Measurement]) -> str:
    rows = [HEADINGS, ("---",) * len(HEADINGS), *(measurement.cells() for measurement in measurements)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _groups(measurements: Sequence[Measurement]) -> list[str]:
    return list(dict.fromkeys(measurement.group for measurement in measurements))
