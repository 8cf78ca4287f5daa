"""Without a program, tests that need it are skipped with a reason; in CI they fail."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[2]
TEST: Final = "tests/docs/test_observe.py::test_prometheus_takes_its_configuration"


def without_promtool(**environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", TEST]
    variables = {name: value for name, value in os.environ.items() if name not in ("CI", "PATH")}
    return subprocess.run(
        command, cwd=ROOT, env={**variables, "PATH": "", **environment}, capture_output=True, text=True, check=False
    )


@pytest.mark.slow
def test_a_missing_program_is_a_reason_to_skip() -> None:
    done = without_promtool()
    assert done.returncode == 0, done.stdout
    assert "1 skipped" in done.stdout
    assert "promtool isn't installed" in done.stdout


def test_in_ci_it_is_a_failure() -> None:
    done = without_promtool(CI="true")
    assert done.returncode == 1, done.stdout
    assert "not to be skipped in CI: " in done.stdout
    assert "promtool isn't installed" in done.stdout
