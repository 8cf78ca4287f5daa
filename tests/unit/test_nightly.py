"""`make nightly`: every step runs whatever the others' results, and each one's last result is on the page."""

from __future__ import annotations

import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import psutil
import pytest

from scripts import nightly
from scripts.nightly import BEGIN, END, STEPS, Step, run
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

GOOD = Step("good", ("echo", "=== 3 passed | 1 skipped ==="), sys.executable)
BAD = Step("bad", ("sh", "-c", "echo first; echo no >&2; exit 3"))
SLOW = Step("slow", ("sleep", "60"))


@pytest.fixture
def page(tmp_path: Path) -> Path:
    page = tmp_path / "nightly.md"
    page.write_text(f"before\n{BEGIN}\n{END}after\n")
    return page


@pytest.fixture
def rows(page: Path) -> Callable[[], dict[str, list[str]]]:
    def read() -> dict[str, list[str]]:
        lines = [line for line in page.read_text().splitlines() if line.startswith("| `")]
        cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
        return {name.strip("`"): rest for name, *rest in cells}

    return read


def test_a_step_that_fails_stops_no_other(page: Path, rows: Callable[[], dict[str, list[str]]]) -> None:
    assert run([BAD, GOOD], page) == 1
    (bad, good) = rows().values()
    assert (bad[0], bad[-1]) == ("failed (3)", "no")
    assert (good[0], good[-1]) == ("passed", "3 passed / 1 skipped")
    assert good[-2].startswith("Python 3.")
    assert "transformers " in good[-2]
    assert page.read_text().startswith("before\n")
    assert page.read_text().endswith("after\n")


def test_a_step_that_runs_again_replaces_its_row_alone(page: Path, rows: Callable[[], dict[str, list[str]]]) -> None:
    run([BAD, GOOD], page)
    assert run([Step("bad", ("true",))], page) == 0
    assert [row[0] for row in rows().values()] == ["passed", "passed"]


def test_a_step_ends_with_an_interrupted_run(page: Path) -> None:
    code = (
        "from pathlib import Path; from scripts.nightly import Step, run;"
        f"run([Step('slow', ('sh', '-c', 'echo $$; exec sleep 60'))], Path({str(page)!r}))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=nightly.ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout
        pid = next(int(line) for line in process.stdout if line.strip().isdigit())  # passed on: the run waits for more
        process.send_signal(signal.SIGINT)
    wait_until(lambda: not psutil.pid_exists(pid))


def test_a_step_that_hangs_is_ended(page: Path, rows: Callable[[], dict[str, list[str]]]) -> None:
    assert run([SLOW], page, limit_s=0.3) == 1
    assert rows()["slow"][0] == "timed out"


def test_an_unknown_step_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert nightly.main(["lowest", "nothing"]) == 2
    assert "no such step: nothing" in capsys.readouterr().err


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.name)
def test_every_step_is_told_of_on_the_page_and_is_a_target(step: Step) -> None:
    assert f"| `{step.name}` |" in nightly.PAGE.read_text("utf-8").partition(BEGIN)[0]
    if step.command[:2] == nightly.MAKE:
        assert f"\n{step.command[2]}:" in (nightly.ROOT / "Makefile").read_text("utf-8")
