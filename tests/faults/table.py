"""The table that `make faults` prints."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table

from tests.faults.verdict import milliseconds

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.faults.verdict import Tally

_COLUMNS = ("fault", "runs", "streams", "tokens", "taken over", "lost", "repeated", "changed", "identical")
_GAPS = ("gap", "= detection", "+ claim, prefill", "re-claim")


def table(tallies: Sequence[Tally]) -> Table:
    """One row a fault. The gap's parts are p50 / max in milliseconds."""
    made = Table(
        caption="gap, its two parts, and re-claim: p50 / max in ms since the fault, by Redis's clock; "
        "where nobody took over, gap is a stream's longest pause"
    )
    for name in (*_COLUMNS, *_GAPS):
        made.add_column(name, justify="left" if name == "fault" else "right", overflow="fold")
    for tally in tallies:
        made.add_row(*_cells(tally), style="red" if tally.red else "dim" if tally.skipped else "")
    return made


def _cells(tally: Tally) -> list[str]:
    if tally.skipped:
        return [tally.fault, "–", *["" for _ in _COLUMNS[2:]], *["" for _ in _GAPS]]
    split = [(gap.released_s, gap.resumed_s) for gap in tally.gaps if gap.released_s is not None]
    share = f"{tally.identical / tally.streams:.1%}" if tally.identical else "–"
    counts = (tally.runs, tally.streams, tally.tokens, tally.takeovers, tally.lost, tally.repeated, tally.changed)
    return [
        tally.fault,
        *(f"{number:,}" for number in counts),
        share,
        milliseconds([gap.resumed_s for gap in tally.gaps]),
        milliseconds([released for released, _ in split]),
        milliseconds([resumed - released for released, resumed in split]),
        milliseconds(tally.claims_s),
    ]
