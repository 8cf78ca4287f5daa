"""Runs the suites that are too long for CI, and writes each step's result to docs/nightly.md: `make nightly`.

A failed step doesn't stop the others; the exit code is then 1. `make nightly STEPS="lowest loaded"` runs only these
steps, and keeps the rows of the others.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT: Final = Path(__file__).parent.parent
PAGE: Final = ROOT / "docs" / "nightly.md"
BEGIN: Final = "<!-- written by scripts/nightly.py: begin -->\n"
END: Final = "<!-- written: end -->\n"
_HEAD: Final = "| step | result | when (UTC) | took | with | its last line |\n|---|---|---|---|---|---|\n"
_ROW: Final = re.compile(r"^\| `([^`]+)` \|.*\|$", re.MULTILINE)
_DECORATION: Final = re.compile(r"\x1b\[[\d;]*m|^=+ | =+$")
_LAST_LINE_CHARS: Final = 120
_LIMIT_S: Final = 3 * 3600.0
_PACKAGES: Final = ("redis", "rq", "torch", "transformers", "pydantic", "fastapi")
_VERSIONS: Final = (
    "import platform; from importlib.metadata import version; "
    f"installed = [f'{{name}} {{version(name)}}' for name in {_PACKAGES}]; "
    "print('Python', platform.python_version() + ',', ', '.join(installed))"
)


@dataclass(frozen=True, slots=True)
class Step:
    """One command. `python`: the interpreter of its environment, for the versions."""

    name: str
    command: tuple[str, ...]
    python: str = ".venv/bin/python"


MAKE: Final = ("make", "--no-print-directory")
STEPS: Final = (
    Step("bare", ("bash", "scripts/bare.sh", *MAKE, "test")),
    Step("lowest", (*MAKE, "lowest"), ".venv-lowest/bin/python"),
    Step("newest", (*MAKE, "newest"), ".venv-newest/bin/python"),
    Step("loaded", (*MAKE, "loaded")),
    Step("clients", (*MAKE, "clients", "CLIENTS_ARGS=--page docs/clients.md")),
    Step("families", (*MAKE, "families")),
    Step("resumes", (*MAKE, "resumes")),
    Step("faults", (*MAKE, "faults", "RUNS=20")),
    Step("chaos", (*MAKE, "chaos", "SECONDS=1200")),
)


def run(steps: Sequence[Step], page: Path = PAGE, limit_s: float = _LIMIT_S) -> int:
    """Run the steps and write each one's row when it ends. Returns the exit code: 1 if a step failed."""
    failed = []
    for step in steps:
        sys.stdout.write(f"nightly: {step.name}: {' '.join(step.command)}\n")
        when, began = datetime.now(UTC), time.monotonic()
        result, last_line = _result(step, limit_s)
        took = f"{(time.monotonic() - began) / 60:.1f} min"
        cells = (f"`{step.name}`", result, f"{when:%Y-%m-%d %H:%M}", took, _versions(step), last_line)
        _write(page, step.name, f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |")
        if result != "passed":
            failed.append(step.name)
    sys.stdout.write(f"nightly: {'failed: ' + ', '.join(failed) if failed else 'all passed'}\n")
    return 1 if failed else 0


def _result(step: Step, limit_s: float) -> tuple[str, str]:
    """The step's result and its last output line. Forwards its output."""
    with subprocess.Popen(
        step.command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    ) as process:
        limit = threading.Timer(limit_s, os.killpg, (process.pid, signal.SIGKILL))
        limit.start()
        last_line = ""
        try:
            for line in process.stdout or ():
                sys.stdout.write(line)
                sys.stdout.flush()
                last_line = line.strip() or last_line
            code = process.wait()
        except BaseException:  # interrupted: the step's process group gets no Ctrl-C
            os.killpg(process.pid, signal.SIGTERM)
            raise
        finally:
            timed_out = limit.finished.is_set()
            limit.cancel()
    result = "timed out" if timed_out else "passed" if code == 0 else f"failed ({code})"
    return result, _DECORATION.sub("", last_line)[:_LAST_LINE_CHARS]


def _versions(step: Step) -> str:
    """Versions in the step's environment; empty if it doesn't exist."""
    if not (ROOT / step.python).exists():
        return ""
    return subprocess.run(
        [ROOT / step.python, "-c", _VERSIONS], capture_output=True, text=True, check=False
    ).stdout.strip()


def _write(page: Path, name: str, row: str) -> None:
    """Replace the step's row, or append it."""
    before, _, rest = page.read_text("utf-8").partition(BEGIN)
    written, _, after = rest.partition(END)
    rows = {match[1]: match[0] for match in _ROW.finditer(written)} | {name: row}
    lines = "".join(f"{each}\n" for each in rows.values())
    page.write_text(f"{before}{BEGIN}\n{_HEAD}{lines}\n{END}{after}", "utf-8")


def main(names: Sequence[str]) -> int:
    """Run the named steps, or all. Returns 2 for an unknown name."""
    unknown = set(names) - {step.name for step in STEPS}
    if unknown:
        sys.stderr.write(
            f"no such step: {', '.join(sorted(unknown))}; there are {', '.join(step.name for step in STEPS)}\n"
        )
        return 2
    return run([step for step in STEPS if not names or step.name in names])


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main(sys.argv[1:]))
