"""Prints a constraints file with the lowest version of every dependency that pyproject.toml allows: `make lowest`.

Except torch, which has the version in constraints.txt. pip resolves transitive dependencies.
A lower bound that was never released, or that conflicts with another one, fails in pip.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Final

from packaging.requirements import Requirement

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT: Final = Path(__file__).parent.parent


def requirements() -> Iterator[Requirement]:
    """All requirements in pyproject.toml, including extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    yield from map(Requirement, project["dependencies"])
    for extra in project["optional-dependencies"].values():
        yield from map(Requirement, extra)


def lowest(requirement: Requirement) -> str:
    """The version of the requirement's `>=`. Raises ValueError if it has none."""
    for bound in requirement.specifier:
        if bound.operator in (">=", "=="):
            return bound.version
    raise ValueError(f"{requirement}: pyproject.toml has no lower bound")


def constraints() -> list[str]:
    """One line per dependency, with torch's tested version."""
    torch = re.search(r"^torch==.*$", (ROOT / "constraints.txt").read_text("utf-8"), re.MULTILINE)
    if torch is None:
        raise ValueError("constraints.txt doesn't pin torch")
    found = {each.name: f"{each.name}=={lowest(each)}" for each in requirements()}
    return sorted((found | {"torch": torch[0]}).values())


if __name__ == "__main__":
    sys.stdout.write("\n".join(constraints()) + "\n")
