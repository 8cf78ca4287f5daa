"""The results as a table, as JSON, and as a part of a page."""

from __future__ import annotations

import json
import platform
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tests.clients.verdict import Row

BEGIN: Final = "<!-- results: make clients writes what stands between these lines -->"
END: Final = "<!-- /results -->"
_HEAD: Final = "| client | version | calls | scenarios | result | run on |"


def table(rows: Sequence[Row]) -> Table:
    """A row for each client."""
    made = Table()
    for name in ("client", "version", "calls", "scenarios", "result"):
        made.add_column(name, justify="right" if name == "calls" else "left", overflow="fold")
    for row in rows:
        made.add_row(*cells(row), style="red" if row.red else "dim" if row.skipped else "")
    return made


def cells(row: Row) -> tuple[str, str, str, str, str]:
    """What the table and the page show of a client."""
    versions = ", ".join(f"{name} {version}" for name, version in row.versions.items())
    red = [scenario for scenario, fault in row.results.items() if fault]
    green = [scenario for scenario, fault in row.results.items() if not fault]
    result = row.failed or (f"red: {', '.join(red)}" if red else f"skipped: {row.skipped}" if row.skipped else "ok")
    return row.name, versions, str(row.calls), ", ".join(green), result


def as_json(rows: Sequence[Row]) -> str:
    """All there is to know of a run."""
    ran = {"at": datetime.now(UTC).isoformat(timespec="seconds"), "python": platform.python_version()}
    return json.dumps({**ran, "clients": [{**asdict(row), "red": row.red} for row in rows]}, indent=2) + "\n"


def write_page(page: Path, rows: Sequence[Row]) -> None:
    """Write the rows between the page's markers; those of other clients stay. Raises ValueError without markers."""
    before, begin, rest = page.read_text("utf-8").partition(BEGIN)
    old, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{page} has no {BEGIN} … {END}")
    kept = [line for line in old.splitlines() if line.startswith("| ") and not line.startswith("| client |")]
    lines = {line.split(" | ")[0].removeprefix("| "): line for line in kept}
    today = f"{datetime.now(UTC):%Y-%m-%d}"
    for row in rows:
        told = (*(cell.replace("|", "/") for cell in cells(row)), today)
        lines[row.name] = f"| {' | '.join(told)} |"
    table = [_HEAD, "|---|---|---:|---|---|---|", *(lines[name] for name in sorted(lines))]
    page.write_text("\n".join([before + begin, *table, end + after]), "utf-8")
