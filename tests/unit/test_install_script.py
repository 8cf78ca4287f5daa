"""scripts/install.sh: which Python it takes, and that old shells can read it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[2]
SCRIPT: Final = ROOT / "scripts" / "install.sh"


def python(folder: Path, name: str, *, fits: bool) -> Path:
    """A stand-in for an interpreter on PATH, of a version that fits or not."""
    file = folder / name
    file.write_text(f"#!/bin/sh\nexit {0 if fits else 1}\n")
    file.chmod(0o755)
    return file


def found(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """What find_python says where only `folder`'s interpreters are on PATH."""
    functions = SCRIPT.read_text("utf-8").partition("\nif ! fits ")[0].replace('cd "$(dirname "$0")/.."', "")
    return subprocess.run(
        ["/bin/bash", "-c", f"{functions}\nfind_python"],
        cwd=ROOT,
        env={"PATH": f"{folder}:{folder}/tools", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Beside the interpreters only what the script itself calls."""
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "sed").symlink_to("/bin/sed" if Path("/bin/sed").exists() else "/usr/bin/sed")
    return tmp_path


def test_the_first_that_fits_is_taken(folder: Path) -> None:
    python(folder, "python3.13", fits=False)  # a version manager's shim with nothing behind it
    python(folder, "python3.11", fits=True)
    python(folder, "python3", fits=True)
    assert found(folder).stdout == "python3.11\n"


def test_a_newer_one_than_we_know_is_found_by_its_common_name(folder: Path) -> None:
    python(folder, "python3", fits=True)
    assert found(folder).stdout == "python3\n"


def test_none_that_fits_says_what_to_install(folder: Path) -> None:
    python(folder, "python3", fits=False)
    done = found(folder)
    assert done.returncode == 1
    assert "no Python 3.11 or newer" in done.stderr
    assert "make PYTHON=" in done.stderr


def test_a_given_one_is_taken_or_refused(folder: Path) -> None:
    given = python(folder, "mine", fits=True)
    python(folder, "python3", fits=True)
    assert found(folder, PYTHON=str(given)).stdout == f"{given}\n"
    python(folder, "mine", fits=False)
    assert f"{given}: no Python 3.11" in found(folder, PYTHON=str(given)).stderr


def test_this_interpreter_fits(folder: Path) -> None:
    assert found(folder, PYTHON=sys.executable).stdout == f"{sys.executable}\n"


@pytest.mark.parametrize("shell", ["bash", "make"])
def test_it_can_be_read(shell: str) -> None:
    command = ["bash", "-n", str(SCRIPT)] if shell == "bash" else ["make", "--dry-run", "help"]
    done = subprocess.run(command, cwd=ROOT, env=dict(os.environ), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
