"""`python -m tests.clients`: unmodified clients, each in its own process, against a real gateway; prints the table.

Exits with 1 if a row fails, or, with CI set, if one is skipped.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Final

from rich.console import Console

from tests.clients.catalogue import CLIENTS, Client
from tests.clients.environments import Environments, Unavailable
from tests.clients.expected import expected_answers
from tests.clients.proxies import before
from tests.clients.references import fault_of_scores
from tests.clients.report import as_json, table, write_page
from tests.clients.session import ProcessFailed, Session, told
from tests.clients.system import System, WorkerKiller, running_system
from tests.clients.tap import Tap
from tests.clients.verdict import Row, fault_of

if TYPE_CHECKING:
    from tests.clients.expected import Expected

_FREED_S: Final = 10.0
"""Until a request that was left must have ended: the gateway's default is 2 s, and this machine may be busy."""


def main() -> int:
    """Run the selected clients; returns 1 if one fails."""
    chosen = arguments()
    console = Console(width=180 if not sys.stdout.isatty() else None)
    environments = Environments(newest=chosen.newest)
    rows = []
    with running_system(chosen.model) as system:
        expected = expected_answers(system.url)
        for client in [client for client in CLIENTS if not chosen.names or client.name in chosen.names]:
            rows.append(row_of(client, environments, system, expected))
            say(rows[-1], console)
    console.print(table(rows))
    if chosen.json:
        chosen.json.write_text(as_json(rows), "utf-8")
    if chosen.page:
        write_page(chosen.page, rows)
    red, skipped = sum(row.red for row in rows), sum(bool(row.skipped) for row in rows)
    console.print(f"clients: {len(rows) - red - skipped} passed, {red} failed, {skipped} skipped")
    return int(red > 0 or (skipped > 0 and "CI" in os.environ))


def arguments() -> argparse.Namespace:
    """Parse the arguments. An unknown client is an error."""
    names = [client.name for client in CLIENTS]
    parser = argparse.ArgumentParser(prog="python -m tests.clients", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="CLIENT", help=f"all if none is given: {', '.join(names)}")
    parser.add_argument("--newest", action="store_true", help="install the newest versions, not those that are pinned")
    parser.add_argument("--model", type=Path, help="a chat model's folder, in place of the bundled model's")
    parser.add_argument("--json", type=Path, help="file to write the results to")
    parser.add_argument("--page", type=Path, help="page whose table is replaced by the results (docs/clients.md)")
    chosen = parser.parse_args()
    unknown = sorted(set(chosen.names) - set(names))
    if unknown:
        parser.error(f"no such client: {', '.join(unknown)}")
    return chosen


def row_of(client: Client, environments: Environments, system: System, expected: Expected) -> Row:
    """Install the client, run all of its scenarios, judge them."""
    row = Row(client.name)
    try:
        command = environments.command(client)
    except Unavailable as reason:
        row.skipped = str(reason)
        return row
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tokenrelay-client-")))
        tap = stack.enter_context(Tap(system.url))
        try:
            own = environments.folder(client)
            url, between = stack.enter_context(before(client, tap.url, folder, own / "bin"))
            variables = {**told(url, own, folder, between), "CLIENT_TOKENIZER": str(system.model)}
            session = stack.enter_context(Session(command, tap, variables))
            row.versions = session.versions
            for scenario in (each for each in session.scenarios if each not in client.without):
                row.results[scenario] = result_of(client, scenario, session, system, expected)
        except ProcessFailed as reason:
            row.failed = str(reason)
        row.calls = len(tap.calls)
    return row


def result_of(client: Client, scenario: str, session: Session, system: System, expected: Expected) -> str:
    """The scenario's fault; empty if it passed."""
    if "killed" in scenario:
        with WorkerKiller(system) as killer:
            fault = fault_of(client, session.run(scenario), expected)
        return fault or killer.fault
    before = system.states()
    outcome = session.run(scenario)
    fault = fault_of(client, outcome, expected)
    if not fault and scenario.startswith("scores"):
        fault = fault_of_scores(outcome.answers, system.model)
    if fault or not scenario.startswith("leave"):
        return fault
    end = time.monotonic() + _FREED_S
    while time.monotonic() < end:
        states = {state for key, state in system.states().items() if key not in before}
        if states == {"cancelled"}:
            return ""
        time.sleep(0.05)
    return f"{_FREED_S:.0f} s after the client left, its request is {', '.join(sorted(states)) or 'unknown'}"


def say(row: Row, console: Console) -> None:
    """Print one client's faults."""
    console.print(f"{row.name}: {'RED' if row.red else 'skipped' if row.skipped else 'ok'} {row.skipped}{row.failed}")
    for scenario, fault in row.results.items():
        if fault:
            console.print(f"    {scenario}: {fault}", markup=False)


if __name__ == "__main__":
    sys.exit(main())
