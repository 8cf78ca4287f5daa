"""An environment of its own for every client, under .clients/ in the repository, made once per set of packages."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.clients.catalogue import Client

HERE: Final = Path(__file__).parent
RECIPES: Final = HERE / "recipes"
PINNED: Final = HERE / "constraints.txt"
NPM_PINNED: Final = HERE / "package.json"
_INSTALL_S: Final = 900.0
_STAMP: Final = "installed.json"
_FOREIGN: Final = re.compile(r"OPENAI|ANTHROPIC|HF_|HUGGING|LITELLM|LANG|CODEX|TOKENRELAY|PYTHON|VIRTUAL_ENV")


class Unavailable(Exception):
    """This machine lacks a program that the client needs, or its package can't be installed."""


@dataclass(frozen=True, slots=True)
class Environments:
    """Where they lie, and whether they hold the newest versions or those that the pins name."""

    root: Path = HERE.parents[1] / ".clients"
    newest: bool = False

    def folder(self, client: Client) -> Path:
        """The client's own, or that of the client whose environment it shares."""
        return self.root / client.environment

    def command(self, client: Client) -> list[str]:
        """The command that runs the client's recipe, once what it needs is installed. Raises Unavailable."""
        for program in client.programs:
            if not shutil.which(program):
                raise Unavailable(f"there is no {program} on PATH")
        folder, recipe = self.folder(client), RECIPES / client.recipe
        if client.packages and client.from_npm:
            self._install_npm(client, folder)
        elif client.packages:
            self._install_python(client, folder)
        if recipe.suffix == ".java":
            return ["java", str(recipe)]
        if recipe.suffix == ".mjs":
            for script in RECIPES.glob("*.mjs"):  # node looks for packages beside a script
                shutil.copy(script, folder)
            return ["node", str(folder / recipe.name)]
        own = client.packages and not client.from_npm
        return [str(folder / "bin" / "python") if own else sys.executable, str(recipe)]

    def _install_python(self, client: Client, folder: Path) -> None:
        pins = [] if self.newest else ["--constraint", str(PINNED)]
        wanted = [*client.packages, *([] if self.newest else [PINNED.read_text("utf-8")])]
        if _is_installed(folder, wanted):
            return
        shutil.rmtree(folder, ignore_errors=True)
        venv.create(folder, symlinks=True)
        pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python"), "install", "--quiet"]
        _install([*pip, "--no-input", "--disable-pip-version-check", *pins, *client.packages], folder)
        _stamp(folder, wanted)

    def _install_npm(self, client: Client, folder: Path) -> None:
        pins: dict[str, str] = json.loads(NPM_PINNED.read_text("utf-8"))["dependencies"]
        wanted = [name if self.newest else f"{name}@{pins[name]}" for name in client.packages]
        if _is_installed(folder, wanted):
            return
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        npm = ["npm", "install", "--no-audit", "--no-fund", "--loglevel=error", "--prefix", str(folder)]
        _install([*npm, *wanted], folder)
        _stamp(folder, wanted)


def clean_environment() -> dict[str, str]:
    """This process's variables without those that point clients elsewhere, or at another Python."""
    return {name: value for name, value in os.environ.items() if not _FOREIGN.match(name)}


def _is_installed(folder: Path, wanted: Sequence[str]) -> bool:
    stamp = folder / _STAMP
    return stamp.exists() and json.loads(stamp.read_text("utf-8")) == list(wanted)


def _stamp(folder: Path, wanted: Sequence[str]) -> None:
    (folder / _STAMP).write_text(json.dumps(list(wanted)), "utf-8")


def _install(command: Sequence[str], folder: Path) -> None:
    """Raises Unavailable with the installer's last lines."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_INSTALL_S, env=clean_environment())
    except subprocess.TimeoutExpired:
        raise Unavailable(f"installing into {folder.name} took more than {_INSTALL_S:.0f} s") from None
    if done.returncode:
        lines = [line for line in re.split(r"[\r\n]+", done.stderr + done.stdout) if line.strip()]
        raise Unavailable(f"can't be installed: {' | '.join(lines[-3:])[-300:]}")
