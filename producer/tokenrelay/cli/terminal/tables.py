"""Tables, percentiles, durations and counts for a terminal of 80 columns.

Cells are escaped with `visible` and never parsed as rich markup. Colour repeats what the text says.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, assert_never

from rich.table import Table
from rich.text import Text

from tokenrelay.cli.terminal.output import visible
from tokenrelay.shared.wire.entries import State

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

Columns = tuple[tuple[str, Literal["<", ">"]], ...]


def _style(state: State) -> str:
    match state:
        case State.FAILED | State.EXPIRED:
            return "red"
        case State.CANCELLED:
            return "yellow"
        case State.COMPLETED | State.INCOMPLETE | State.QUEUED | State.IN_PROGRESS:
            return ""
        case _:
            assert_never(state)


_STYLES: Final = {**{str(state): _style(state) for state in State}, "running": "green", "silent": "bold red"}


def table(columns: Columns, rows: Iterable[Sequence[str]], *, gap: int = 2) -> Table:
    """A table without borders. If the terminal is too narrow, only the last and the first column are truncated."""
    render = Table(box=None, pad_edge=False, header_style="dim", padding=(0, gap, 0, 0))
    for number, (name, side) in enumerate(columns):
        last = number == len(columns) - 1 or (side == "<" and number == 0)
        render.add_column(
            name,
            justify="right" if side == ">" else "left",
            no_wrap=True,
            overflow="ellipsis",
            min_width=None if last else len(name),
        )
    for row in rows:
        render.add_row(*(Text(visible(cell), style=_STYLES.get(cell, "")) for cell in row))
    return render


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Nearest-rank percentiles, so each is a measured value. In the sample's unit; None for an empty sample."""

    count: int
    p50: float | None = None
    p90: float | None = None
    p99: float | None = None
    max: float | None = None

    @classmethod
    def of(cls, sample: Iterable[float]) -> Percentiles:
        values = sorted(sample)
        if not values:
            return cls(0)
        p50, p90, p99 = (values[math.ceil(share * len(values)) - 1] for share in (0.5, 0.9, 0.99))
        return cls(len(values), p50, p90, p99, values[-1])

    def as_json(self) -> dict[str, float | int | None]:
        """As a JSON object, rounded to a thousandth."""
        values = {name: getattr(self, name) for name in ("p50", "p90", "p99", "max")}
        return {"count": self.count, **{name: v if v is None else round(v, 3) for name, v in values.items()}}


def percentile_table(title: str, spreads: Mapping[str, Percentiles]) -> Table:
    """A row for each spread, in milliseconds."""
    columns: Columns = ((title, "<"), *((name, ">") for name in ("p50", "p90", "p99", "max", "count")))
    return table(
        columns,
        [
            (name, *(milliseconds(value) for value in (of.p50, of.p90, of.p99, of.max)), f"{of.count:,}")
            for name, of in spreads.items()
        ],
    )


def duration(seconds: float | None) -> str:
    """At most 6 characters: `0.4 ms`, `128 ms`, `4.20 s`, `73.1 s`, `12m05s`, `3h20m`."""
    if seconds is None:
        return "—"
    if seconds < 0.01:
        return f"{seconds * 1000:.1f} ms"
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 99.95:
        return f"{seconds:.2f} s" if seconds < 9.995 else f"{seconds:.1f} s"
    seconds = round(seconds)
    if seconds < 3600:
        return f"{seconds // 60}m{seconds % 60:02}s"
    return f"{seconds // 3600}h{seconds % 3600 // 60:02}m"


def milliseconds(value: float | None) -> str:
    return duration(None if value is None else value / 1000)


def counted(number: int, noun: str) -> str:
    """`3 requests`, `1 request`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
