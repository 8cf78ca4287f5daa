"""docs/testing.md: its examples are tests, run by a separate pytest that discovers the fixtures."""

from __future__ import annotations

import doctest
import inspect
import re
import subprocess
import sys
from pathlib import Path

from tokenrelay import pytest_plugin, testing
from tokenrelay.testing import scripted_worker

PAGE = (Path(__file__).parents[2] / "docs" / "testing.md").read_text("utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def test_the_examples_pass(tmp_path: Path) -> None:
    for number, block in enumerate(BLOCKS):
        (tmp_path / f"test_example_{number}.py").write_text(block, "utf-8")
    (tmp_path / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n", "utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False)
    assert re.search(r"^4 passed", done.stdout, re.MULTILINE), done.stdout + done.stderr


def test_the_docstrings_example() -> None:
    assert doctest.testmod(scripted_worker) == (0, 4)


def test_the_page_has_every_fixture_and_name() -> None:
    fixtures = [name for name in vars(pytest_plugin) if name.startswith("tokenrelay_")]
    assert len(fixtures) == 3
    methods = [name for name, _ in inspect.getmembers(testing.Script, inspect.isfunction) if not name.startswith("_")]
    for name in [*fixtures, *testing.__all__, *(method for method in methods if method != "within")]:
        assert re.search(rf"\b{name}\b", PAGE), name
