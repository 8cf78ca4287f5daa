"""Small charts: block characters for a terminal, or a file drawn by matplotlib."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Final

from tokenrelay.shared.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from tokenrelay.cli.load.report import Report

_BLOCKS: Final = " ▁▂▃▄▅▆▇█"
_ROWS: Final = 4
_LABEL: Final = 9


def bars(values: Sequence[float | None], shown: Callable[[float], str], wide: int = 1) -> list[str]:
    """A bar chart of four text lines, `wide` columns per value, scaled from 0 to the maximum. `shown` formats labels.

    None leaves its column empty; any value above 0 is at least one block high.
    """
    most = max((value for value in values if value is not None), default=0.0)
    eighths = [0 if not value or not most else max(1, round(value / most * _ROWS * 8)) for value in values]
    lines = []
    for row in reversed(range(_ROWS)):
        label = shown(most) if row == _ROWS - 1 else shown(0.0) if row == 0 else ""
        blocks = "".join(wide * _BLOCKS[min(8, max(0, height - 8 * row))] for height in eighths)
        lines.append(f"{label:>{_LABEL}} {blocks}".rstrip())
    return lines


def check_plot(file: Path) -> None:
    """Raises SettingsError if the plot couldn't be written. Call it before the run."""
    if importlib.util.find_spec("matplotlib") is None:
        raise SettingsError("--plot: needs matplotlib, which isn't installed: pip install 'tokenrelay[plot]'")
    if not file.parent.is_dir():
        raise SettingsError(f"--plot: no such folder: {file.parent}")
    if file.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise SettingsError(f"--plot: {file.name!r}: unsupported format; give a name that ends in .png, .svg or .pdf")


def write_plot(found: Report, file: Path) -> None:
    """Plot TTFT and tokens per second over the run. Raises SettingsError if the file can't be written."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True)
    begins = [bucket.begin_s for bucket in found.buckets]
    arrived = [(bucket.begin_s, bucket.ttft_p50_ms) for bucket in found.buckets if bucket.ttft_p50_ms is not None]
    upper.plot([begin for begin, _ in arrived], [ttft for _, ttft in arrived], marker=".", color="tab:blue")
    upper.set_ylabel("first token, median (ms)")
    upper.set_ylim(bottom=0)
    lower.step(begins, [bucket.tokens_per_s for bucket in found.buckets], where="post", color="tab:green")
    lower.set_ylabel("tokens/s")
    lower.set_xlabel("seconds from the start")
    lower.set_ylim(bottom=0)
    upper.set_title(f"{found.requests:,} requests, {found.rate:.2f}/s, seed {found.seed}")
    try:
        figure.savefig(file, dpi=120)
    except OSError as error:
        raise SettingsError(f"--plot: {error}") from None
