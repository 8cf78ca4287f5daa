"""Tables and durations for a terminal of 80 columns.

Names that come from elsewhere go through `visible` and none of rich's markup. Colour says nothing that a word doesn't.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

from rich.table import Table
from rich.text import Text

from tokenrelay.cli.output import visible

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

Columns = tuple[tuple[str, Literal["<", ">"]], ...]
_STYLES: Final = {"failed": "red", "expired": "red", "cancelled": "yellow", "running": "green", "silent": "bold red"}


def table(columns: Columns, rows: Iterable[Sequence[str]], *, gap: int = 2) -> Table:
    """A table without lines. Its last column is cut where the terminal is too narrow; numbers never are."""
    drawn = Table(box=None, pad_edge=False, header_style="dim", padding=(0, gap, 0, 0))
    for number, (name, side) in enumerate(columns):
        last = number == len(columns) - 1 or (side == "<" and number == 0)
        drawn.add_column(
            name,
            justify="right" if side == ">" else "left",
            no_wrap=True,
            overflow="ellipsis",
            min_width=None if last else len(name),
        )
    for row in rows:
        drawn.add_row(*(Text(visible(cell), style=_STYLES.get(cell, "")) for cell in row))
    return drawn


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
