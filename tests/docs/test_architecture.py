"""The paths and methods in docs/architecture.md exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text("utf-8")
TREES = {"shared": "shared", "worker": "worker", **dict.fromkeys(("producer", "gateway", "cli", "testing"), "producer")}
PATHS = set(re.findall(r"`((?:gateway|cli|producer|worker|shared|tests)/[\w/.]+)`", PAGE))


def resolve(path: str) -> Path:
    """A path of the page, which leaves out the tree and `tokenrelay`."""
    short = ROOT / TREES.get(path.partition("/")[0], "") / "tokenrelay" / path
    return short if short.exists() else ROOT / path


def test_its_paths_exist() -> None:
    assert len(PATHS) > 60
    assert {path for path in PATHS if not resolve(path).exists()} == set()


def test_it_names_every_module_of_the_workers_core() -> None:
    core = {file.name for file in resolve("worker/core").glob("*.py")} - {"__init__.py"}
    assert len(core) > 8
    assert {name for name in core if f"`{name}`" not in PAGE and f"`worker/core/{name}`" not in PAGE} == set()


@pytest.mark.parametrize(
    "name", ["poller", "job_keeper", "maintainer", "registries", "recovery", "supervisor", "threads"]
)
def test_it_names_the_loops_of_the_worker(name: str) -> None:
    (file,) = resolve("worker/core").parent.rglob(f"{name}.py")
    assert str(file.relative_to(ROOT / "worker" / "tokenrelay")) in PATHS


def test_its_methods_exist() -> None:
    named = re.findall(r"`(\w+)\.(\w+)` in `([\w/.]+)`", PAGE)
    assert named
    for cls, method, path in named:
        source = resolve(path).read_text("utf-8")
        assert re.search(rf"^class {cls}\b", source, re.MULTILINE), (cls, path)
        assert re.search(rf"^    def {method}\(", source, re.MULTILINE), (method, path)
