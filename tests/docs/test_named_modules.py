"""Files and modules of ours that docstrings, comments and pages name exist, where a reader looks for them."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
FOLDERS = [each for each in ROOT.iterdir() if each.is_dir() and not each.name.startswith(".") and each.name != "dist"]
FILES = [
    file.relative_to(ROOT)
    for file in (*ROOT.glob("*.md"), *(file for folder in FOLDERS for file in sorted(folder.rglob("*"))))
    if file.suffix in (".py", ".lua", ".md") and not {"node_modules", "build"} & {*file.parts}
]
TEXTS = [file for file in FILES if file.name != "CHANGELOG.md"]
MODULES = {
    re.sub(r".*\btokenrelay/", "", str(file.with_suffix(""))).replace("/", ".").removesuffix(".__init__")
    for file in FILES
    if file.suffix == ".py" and "/tokenrelay/" in str(file)
}
STEMS = {module.rpartition(".")[2] for module in MODULES}
FILE: Final = re.compile(r"(?<![\w*{}<-])[\w./-]*\w\.(?:py|lua)\b")
DOTTED: Final = re.compile(r"\btokenrelay\.((?:shared|producer|worker|gateway|cli|testing)(?:\.[a-z_]\w*)+)")
CONSTANT: Final = re.compile(r"(?<![\w.])([a-z]\w+)\.[A-Z][A-Z_]+\b")
"""A constant behind the name of its module."""
ELSEWHERE = {
    "rq/results.py",
    "tokenrelay/__init__.py",  # which doesn't exist, as the pages say
}
NO_MODULES = {"tokenrelay", "redis", "re"}
"""Names before a dot and capitals that are no modules of ours: `tokenrelay.MODEL` is a queue."""


def prose(file: Path) -> Iterator[str]:
    """Docstrings and comments of a source; the whole of a page."""
    path = ROOT / file
    if file.suffix == ".md":
        yield path.read_text("utf-8")
    elif file.suffix == ".lua":
        yield from (line.partition("--")[2] for line in path.read_text("utf-8").splitlines())
    else:
        source = path.read_text("utf-8")
        yield from (line.partition("# ")[2] for line in source.splitlines())
        for node in ast.walk(ast.parse(source)):
            match node:
                case ast.Expr(value=ast.Constant(value=str(text))):
                    yield text


def is_file(name: str, named_in: Path) -> bool:
    """Whether a reader finds it: from the root, from the page or source itself, or as the only one of its name."""
    folders = (ROOT, *(ROOT / folder for folder in named_in.parents))
    found = [file for file in FILES if str(file) == name or str(file).endswith(f"/{name}")]
    return any((folder / name).exists() for folder in folders) or ("/" in name and bool(found)) or len(found) == 1


def missing(text: str, named_in: Path) -> list[str]:
    gone = [name for name in FILE.findall(text) if name not in ELSEWHERE and not is_file(name, named_in)]
    for name in DOTTED.findall(text):
        parts = name.split(".")
        if not any(".".join(parts[:end]) in MODULES for end in range(max(2, len(parts) - 2), len(parts) + 1)):
            gone.append(name)
    return gone + [name for name in CONSTANT.findall(text) if name not in STEMS | NO_MODULES]


@pytest.mark.parametrize("file", TEXTS, ids=str)
def test_what_is_named_exists(file: Path) -> None:
    assert [name for text in prose(file) for name in missing(text, file)] == []


@pytest.mark.parametrize(
    ("text", "gone"),
    [
        ("that is protocol.py", ["protocol.py"]),
        ("see commands.py", ["commands.py"]),
        ("generated from protocol.TRANSITIONS", ["protocol"]),
        ("`tokenrelay.shared.protocol.check`", ["shared.protocol.check"]),
        ("transitions.py, transitions.TRANSITIONS, `tokenrelay.shared.wire.transitions.StreamMachine`", []),
    ],
)
def test_a_stale_name_is_found(text: str, gone: list[str]) -> None:
    assert missing(text, Path("shared/tokenrelay/shared/wire/entries.py")) == gone
