"""`python -m tests.faults`: break real workers and real Redis servers, compare every token, print the table.

Exit code 1 where a promise was broken, or a row has too few runs or couldn't be run at all.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Final

from rich.console import Console

from tests.faults import kills, queue_faults, redis_faults, sick_faults
from tests.faults.bench import Bench
from tests.faults.load import POOL, requests, undisturbed
from tests.faults.nursery import ROOT, Nursery
from tests.faults.site import Plan, Site
from tests.faults.table import table
from tests.faults.verdict import Tally

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.faults.load import Text

LEAST_RUNS: Final = 20
ALONE: Final = frozenset(
    {
        "SIGKILL child",
        "SIGKILL supervisor and child",
        "SIGKILL both, lease 6 s",
        "SIGKILL supervisor, loading",
        "cancel",
        "pace beside a sick request",
    }
)
LANES: Final = 2
FAULTS: Final[dict[str, Callable[[Bench, Tally], None]]] = {
    **kills.FAULTS,
    **redis_faults.FAULTS,
    **queue_faults.FAULTS,
    **sick_faults.FAULTS,
}


def main() -> int:
    """Run the rows that are asked for; 1 where one is red."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--runs", type=int, default=LEAST_RUNS, help="runs a fault; fewer than 20 is red")
    parser.add_argument("--only", action="append", default=[], help="part of a fault's name; may be given again")
    parser.add_argument("--seed", type=int, default=None, help="of the moments; drawn and printed if not given")
    parser.add_argument("--cold", action="store_true", help="start every process anew, as `tokenrelay-worker run` does")
    parser.add_argument("--allow-skips", action="store_true", help="a row that can't be run here (no root) isn't red")
    chosen = parser.parse_args()
    for name in ("asyncio", "rq"):  # what they say of connections and jobs that are lost on purpose
        logging.getLogger(name).setLevel(logging.CRITICAL)
    seed = secrets.randbelow(2**32) if chosen.seed is None else chosen.seed
    names = [name for name in FAULTS if not chosen.only or any(part in name for part in chosen.only)]
    console = Console(width=180 if not sys.stdout.isatty() else None)
    console.print(f"seed {seed}, {chosen.runs} runs a fault")
    folder = Path(tempfile.mkdtemp(prefix="tokenrelay-faults-"))
    with nullcontext() if chosen.cold else Nursery() as nursery:
        bench = prepared(folder, nursery, chosen.runs, seed)
        control = controlled(bench.texts, folder, console)
        tallies = run_all(bench, names, console, allow_skips=chosen.allow_skips)
    console.print(table(tallies))
    if any(tally.red for tally in tallies):
        console.print(f"logs: {folder}")
    else:
        shutil.rmtree(folder, ignore_errors=True)
    return max(report(tallies, chosen.runs, console), control)


def controlled(texts: Sequence[Text], folder: Path, console: Console) -> int:
    """Say what the texts are worth; 1 where they prove nothing, or aren't what the draw gives. In a process of its own,
    for it imports torch."""
    file = folder / "tokens.json"
    file.write_text(json.dumps([[token_id for _, token_id, _ in text.tokens] for text in texts]))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "180"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.control", str(file)],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    console.print((done.stdout or done.stderr).strip(), markup=False)
    return done.returncode


def prepared(folder: Path, nursery: Nursery | None, runs: int, seed: int) -> Bench:
    """The bench, with the texts of an undisturbed run in both arithmetics."""
    texts: dict[str, Sequence[Text]] = {}
    for dtype in ("float64", "float32"):
        with Site(folder / f"undisturbed-{dtype}", nursery, Plan(workers=1, settings={"DTYPE": dtype})) as site:
            texts[dtype] = undisturbed(site, requests(POOL, seed=1))
    return Bench(folder, nursery, texts["float64"], runs, seed, texts["float32"])


def run_all(bench: Bench, names: Sequence[str], console: Console, *, allow_skips: bool) -> list[Tally]:
    """The rows, in the order of `names`. Those that measure time run alone, the others, which wait a lot, in pairs."""

    def run_row(name: str) -> Tally:
        return run(bench, Tally(name, bench.runs, skips_allowed=allow_skips), console)

    timed = {name: run_row(name) for name in names if name in ALONE}
    others = [name for name in names if name not in ALONE]
    with ThreadPoolExecutor(LANES) as lanes:
        done = dict(zip(others, lanes.map(run_row, others), strict=True))
    return [(timed | done)[name] for name in names]


def run(bench: Bench, tally: Tally, console: Console) -> Tally:
    """One row. What it can't do for an error is a broken promise of its own."""
    name = tally.fault
    began = time.monotonic()
    try:
        FAULTS[name](bench, tally)
    except Exception as error:  # noqa: BLE001  the other rows are still worth having
        traceback.print_exc()
        tally.broken.append(f"{type(error).__name__}: {error}")
    tally.wall_s = time.monotonic() - began
    said = " ".join(part for part in ("RED" if tally.red else "" if tally.skipped else "ok", tally.skipped) if part)
    console.print(f"{name}: {said} in {tally.wall_s:.0f} s", *tally.notes, sep="\n    ")
    for line in tally.broken[:20]:
        console.print(f"    broken: {line}", markup=False)
    return tally


def report(tallies: Sequence[Tally], runs: int, console: Console) -> int:
    """The sums, and what is red."""
    exact = [tally for tally in tallies if tally.exact and tally.identical]
    streams, identical = sum(t.streams for t in exact), sum(t.identical for t in exact)
    console.print(
        f"{sum(t.tokens for t in tallies):,} tokens in {sum(t.streams for t in tallies):,} streams, "
        f"{sum(t.takeovers for t in tallies):,} takeovers; float64: {identical:,} of {streams:,} streams identical; "
        f"{sum(t.consumers for t in tallies):,} consumers' copies compared; "
        f"{sum(t.complete for t in tallies):,} structured answers complete, and in format; "
        f"{sum(t.wall_s for t in tallies):.0f} s"
    )
    red = [tally.fault for tally in tallies if tally.red]
    if runs < LEAST_RUNS:
        red.append(f"{runs} runs a fault; {LEAST_RUNS} are asked for")
    for name in red:
        console.print(f"[red]red: {name}[/red]")
    return 1 if red else 0


if __name__ == "__main__":
    sys.exit(main())
