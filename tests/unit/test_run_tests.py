"""`make test`: groups run in parallel, their output and counts are merged, and no failure is lost."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Final

import pytest

from scripts.run_tests import PARTS, ROOT, files_of_sessions, main, worst

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

PASSES: Final = "def test_one(): pass\ndef test_two(): pass\n"
SKIPS: Final = "import pytest\n@pytest.mark.skip\ndef test_three(): pass\n"
FAILS: Final = "def test_four(): assert False\n"
ERRORS: Final = "import pytest\n@pytest.fixture\ndef broken(): raise OSError\ndef test_five(broken): pass\n"
SLOW: Final = "import pytest\n@pytest.mark.slow\ndef test_six(): pass\n"
EXITS: Final = "import os\ndef test_seven(): os._exit(7)\n"
KILLED: Final = "import os, signal\ndef test_eight(): os.kill(os.getpid(), signal.SIGKILL)\n"
NO_PYTHON: Final = "def test_nine(:\n"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """A folder with tests of the groups, by their folder. They need no plugins, whose imports take a second."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")

    def make(**files: str) -> Path:
        for folder, content in {"gateway": PASSES, "browser": SKIPS, "integration": PASSES, **files}.items():
            (tmp_path / "tests" / folder).mkdir(parents=True)
            (tmp_path / "tests" / folder / f"test_{folder}.py").write_text(textwrap.dedent(content))
        markers = "[tool.pytest.ini_options]\nmarkers = ['slow: no matter']\n"
        (tmp_path / "pyproject.toml").write_text(markers)
        return tmp_path

    return make


def test_all_groups_are_counted(root: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([], root(unit=PASSES, docs=SLOW)) == 0
    told = capsys.readouterr().out
    assert told.splitlines()[-1] == "6 passed, 0 failed, 1 skipped"
    for name in ("gateway", "integration 1", "rest"):
        assert f"{name:>13} | " in told
    assert "integration 2" not in told, "it has one file"


@pytest.mark.parametrize(
    ("content", "code", "counted", "told"),
    [
        (FAILS, 1, "4 passed, 1 failed, 1 skipped", None),
        pytest.param(ERRORS, 1, "4 passed, 1 failed, 1 skipped", None, marks=pytest.mark.slow),
        pytest.param(NO_PYTHON, 2, "4 passed, 1 failed, 1 skipped", "exit code 2", marks=pytest.mark.slow),
        pytest.param(EXITS, 7, "4 passed, 0 failed, 1 skipped", "exit code 7", marks=pytest.mark.slow),
        (KILLED, 9, "4 passed, 0 failed, 1 skipped", "rest ended with exit code 9"),
    ],
    ids=["fails", "errors", "no Python", "exits", "killed"],
)
def test_a_group_that_fails_is_the_whole_s_exit_code(
    root: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
    content: str,
    code: int,
    counted: str,
    told: str | None,
) -> None:
    assert main([], root(unit=content)) == code
    printed = capsys.readouterr().out
    assert printed.splitlines()[-1] == counted
    assert (told in printed) if told else ("ended with exit code" not in printed)


@pytest.mark.parametrize(
    ("arguments", "code"), [(["tests/unit"], 1), (["tests/gateway", "-q"], 0), (["-k", "nothing"], 5)]
)
def test_arguments_are_pytest_s(
    root: Callable[..., Path], capfd: pytest.CaptureFixture[str], arguments: list[str], code: int
) -> None:
    """In one session, whose exit code it is."""
    assert main(arguments, root(unit=FAILS)) == code
    assert " | " not in capfd.readouterr().out


@pytest.mark.parametrize(
    ("codes", "code"), [([0, 0], 0), ([0, 5], 0), ([5, 5], 5), ([1, 5], 1), ([0, 1, 2], 2), ([9, 1], 9), ([], 5)]
)
def test_a_group_without_tests_is_no_failure_unless_all_are(codes: list[int], code: int) -> None:
    assert worst(codes) == code


def test_every_file_is_in_one_session() -> None:
    sessions = files_of_sessions()
    found = sorted(str(file.relative_to(ROOT)) for file in (ROOT / "tests").rglob("test_*.py"))
    assert sorted(file for files in sessions.values() for file in files) == found
    assert {f"integration {part + 1}" for part in range(PARTS["integration"])} < sessions.keys()
