"""The paths and methods in docs/architecture.md exist."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text("utf-8")
PATHS = set(re.findall(r"`((?:producer|worker|shared|tests)/[\w/.]+)`", PAGE))


def test_its_paths_exist() -> None:
    assert len(PATHS) > 20
    assert {path for path in PATHS if not (ROOT / path).exists()} == set()


def test_it_names_every_module_of_the_workers_core() -> None:
    core = {
        str(file.relative_to(ROOT))
        for name in (
            "poller",
            "publisher",
            "job_keeper",
            "maintainer",
            "registries",
            "recovery",
            "supervisor",
            "loop",
            "threads",
        )
        for file in (ROOT / "worker" / "tokenrelay" / "worker").rglob(f"{name}.py")
    }
    assert len(core) == 9
    assert core <= PATHS


def test_its_methods_exist() -> None:
    named = re.findall(r"`(\w+)\.(\w+)` in `([\w/.]+)`", PAGE)
    assert named
    for cls, method, path in named:
        source = (ROOT / path).read_text("utf-8")
        assert re.search(rf"^class {cls}\b", source, re.MULTILINE), (cls, path)
        assert re.search(rf"^    def {method}\(", source, re.MULTILINE), (method, path)
