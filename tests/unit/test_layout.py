"""Import rules, the contents of the source trees, and generated pages."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path
from typing import TypeGuard

import pytest

from scripts import lifecycle_docs
from tokenrelay.shared.store.scripts import SCRIPTS, script
from tokenrelay.shared.wire import keys
from tokenrelay.shared.wire.entries import State
from tokenrelay.shared.wire.transitions import NOTHING, TRANSITIONS

ROOT = Path(__file__).parents[2]
TREES = {"shared": ROOT / "shared", "producer": ROOT / "producer", "worker": ROOT / "worker"}
APPLICATIONS = ("tokenrelay.cli", "tokenrelay.gateway")
"""Packages built on `tokenrelay.producer`."""
WORKER = ROOT / "worker" / "tokenrelay" / "worker"
RQS_COMMAND = "generation_worker.py"
FORBIDDEN = {
    "shared": (*APPLICATIONS, "tokenrelay.producer", "tokenrelay.testing", "tokenrelay.worker", "torch"),
    "producer": ("tokenrelay.worker", "torch", "transformers"),
    "producer/tokenrelay/producer": APPLICATIONS,
    "producer/tokenrelay/gateway": ("tokenrelay.cli",),
    "worker": (*APPLICATIONS, "tokenrelay.producer", "tokenrelay.testing"),
}
FLOORS = {
    "gateway": (
        "http",
        "records",
        "views",
        "streams",
        "core",
        "openai/tools",
        "openai/bodies",
        "openai",
        "native",
        "",
    ),
    "cli": ("terminal", "client", "ops", "load", "demo", ""),
    "producer": ("_core", ""),
}
"""Rooms of a package, lowest floor first; each may import from itself and those before it. "" is the package root."""
PEERS = {"ops", "load", "demo"}
"""Rooms of the CLI that don't import each other."""
WORKER_FLOORS = (
    "sampling", "text", "models", "training", "engine", "serving", "core", "intake", "rq_mirror", "maintenance", "",
    "supervisor", "__main__",
)  # fmt: skip
"""The worker's rooms: each may import from those before it. The empty one holds the modules of the package itself,
which put the rooms together."""
WITHOUT_REDIS = ("sampling", "text", "models", "training", "engine", "serving")
"""The worker's rooms that know no Redis and no RQ."""
ENGINES = ("transformers",)
"""Folders of `engine`, each of one engine. Only the factory names them."""
LIFECYCLE = ROOT / "docs" / "request-lifecycle.md"
SOURCES = [file for tree in TREES.values() for file in sorted(tree.rglob("*.py"))]


def imported_names(file: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


@pytest.mark.parametrize("folder", FORBIDDEN)
def test_imports_go_one_way(folder: str) -> None:
    files = list((ROOT / folder).rglob("*.py"))
    assert files
    for file in files:
        for name in imported_names(file):
            for forbidden in FORBIDDEN[folder]:
                assert name != forbidden, f"{file} imports {name}"
                assert not name.startswith(forbidden + "."), f"{file} imports {name}"


@pytest.mark.parametrize("package", FLOORS)
def test_rooms_import_downwards(package: str) -> None:
    root, floors = ROOT / "producer" / "tokenrelay" / package, FLOORS[package]
    prefix = f"tokenrelay.{package}."
    for file in root.rglob("*.py"):
        own = "/".join(file.relative_to(root).parts[:-1])
        for name in imported_names(file):
            room, _, module = name.removeprefix(prefix).replace(".", "/").rpartition("/")
            if name.startswith(prefix) and (root / room / f"{module}.py").exists():
                assert floors.index(room) <= floors.index(own), f"{file} imports {name}"
                assert room == own or not {room, own} <= PEERS, f"{file} imports {name}"


SHARED = ROOT / "shared" / "tokenrelay" / "shared"
SHARED_FLOORS = ("answers", "wire", "redis", "store", "", "metrics")
"""Rooms of shared. The empty one holds the modules of the package itself: settings, options."""


def shared_room(parts: tuple[str, ...]) -> str:
    """The room of a module of `tokenrelay.shared`; the errors, which have no room, are everybody's."""
    return "wire" if parts[0] == "errors" else parts[0] if (SHARED / parts[0]).is_dir() else ""


def test_shareds_rooms_import_downwards() -> None:
    """keys and entries ← connections and batches ← scripts and what Redis holds ← settings and the rest."""
    assert {file.name for file in SHARED.iterdir() if (file / "__init__.py").exists()} <= set(SHARED_FLOORS)
    for file in SHARED.rglob("*.py"):
        floor = SHARED_FLOORS.index(shared_room(file.relative_to(SHARED).with_suffix("").parts))
        for name in imported_names(file):
            parts = tuple(name.split("."))
            if parts[:2] == ("tokenrelay", "shared") and len(parts) > 2:
                assert SHARED_FLOORS.index(shared_room(parts[2:])) <= floor, f"{file} imports {name}"


def worker_room(parts: tuple[str, ...]) -> str:
    """The room of a module of `tokenrelay.worker`, from the parts of its path or name."""
    is_room = (WORKER / parts[0]).is_dir()
    return parts[0] if is_room or parts[0] == "__main__" else ""


def test_the_workers_rooms_import_downwards() -> None:
    assert {file.name for file in WORKER.iterdir() if (file / "__init__.py").exists()} <= set(WORKER_FLOORS)
    for file in WORKER.rglob("*.py"):
        floor = WORKER_FLOORS.index(worker_room(file.relative_to(WORKER).with_suffix("").parts))
        for name in imported_names(file):
            parts = tuple(name.split("."))
            if parts[:2] == ("tokenrelay", "worker") and len(parts) > 2:
                assert WORKER_FLOORS.index(worker_room(parts[2:])) <= floor, f"{file} imports {name}"


@pytest.mark.parametrize("room", WITHOUT_REDIS)
def test_what_generates_knows_no_redis(room: str) -> None:
    files = list((WORKER / room).rglob("*.py"))
    assert files
    for file in files:
        for name in imported_names(file):
            for known in ("redis", "rq", "tokenrelay.shared.redis", "tokenrelay.shared.store"):
                assert name != known, f"{file} imports {name}"
                assert not name.startswith(known + "."), f"{file} imports {name}"


def test_an_engine_stays_in_its_folder() -> None:
    """Only the factory imports it: nothing else of the worker depends on which engine runs."""
    for engine in ENGINES:
        folder = WORKER / "engine" / engine
        inside = f"tokenrelay.worker.engine.{engine}"
        importing = {
            str(file.relative_to(WORKER))
            for file in WORKER.rglob("*.py")
            if folder not in file.parents and any(name.startswith(inside) for name in imported_names(file))
        }
        assert importing == {"engine/factory.py"}
        for file in folder.rglob("*.py"):
            assert "tokenrelay.worker.engine.factory" not in imported_names(file), file


def test_only_an_engine_names_what_it_runs_on() -> None:
    engines = [WORKER / "engine" / engine for engine in ENGINES]
    outside = [file for file in WORKER.rglob("*.py") if not any(folder in file.parents for folder in engines)]
    assert outside
    assert [file for file in outside if "ContinuousBatching" in file.read_text("utf-8")] == []


def test_the_loop_is_short() -> None:
    """It reads as the pipeline: what its messages do stands elsewhere."""
    tree = ast.parse((WORKER / "core" / "loop.py").read_text("utf-8"))
    (loop,) = (node for node in tree.body if isinstance(node, ast.ClassDef))
    assert (loop.name, (loop.end_lineno or 0) - loop.lineno < 80) == ("GenerationLoop", True)


def test_what_all_engines_share_needs_no_torch() -> None:
    shared = [file for file in (WORKER / "engine").rglob("*.py") if not {*ENGINES} & {*file.parts[-3:-1]}]
    assert {"contract.py", "admission.py", "output_queue.py", "fingerprint.py"} <= {file.name for file in shared}
    for file in shared:
        if file.name != "factory.py":
            assert not any(name.split(".")[0] == "torch" for name in imported_names(file)), file


def imports_rq(file: Path, package: str) -> bool:
    return any(name == package or name.startswith(package + ".") for name in imported_names(file))


def test_rq_is_behind_its_mirror() -> None:
    """Nothing else of the worker imports RQ, and no worker is built upon RQ's: the one for RQ's command line, which
    accepts subclasses only, uses nothing of it."""
    sources = {str(file.relative_to(WORKER)): file for file in WORKER.rglob("*.py")}
    outside = [name for name, file in sources.items() if imports_rq(file, "rq") and not name.startswith("rq_mirror/")]
    assert outside == [RQS_COMMAND]
    assert [name for name, file in sources.items() if imports_rq(file, "rq.worker")] == [RQS_COMMAND]
    code = sources[RQS_COMMAND].read_text("utf-8")
    assert len(code.splitlines()) <= 50
    assert "super()" not in code
    assert {node.attr for node in ast.walk(ast.parse(code)) if is_of_self(node)} == {"_worker"}


def is_of_self(node: ast.AST) -> TypeGuard[ast.Attribute]:
    return isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self"


@pytest.mark.parametrize(
    "package",
    [
        "producer/tokenrelay/gateway",
        "producer/tokenrelay/cli",
        "producer/tokenrelay/producer",
        "shared/tokenrelay/shared",
        "worker/tokenrelay/worker",
    ],
)
def test_rooms_are_small(package: str) -> None:
    for folder in {file.parent for file in (ROOT / package).rglob("*.py")}:
        modules = [file for file in folder.glob("*.py") if file.name not in ("__init__.py", "__main__.py")]
        assert len(modules) <= 10, folder


@pytest.mark.parametrize("module", ["tokenrelay.producer", "tokenrelay.shared.store.jobs"])
def test_importing_it_leaves_torch_and_the_worker_out(module: str) -> None:
    heavy = ("torch", "transformers", "tokenrelay.worker")
    code = f"import sys, {module}; print([name for name in {heavy!r} if name in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "[]"


@pytest.mark.parametrize("module", ["supervisor.supervisor", "supervisor.child", "generation_worker", "__main__"])
def test_what_starts_workers_loads_no_torch(module: str) -> None:
    """A supervisor must survive whatever its engine does; a pool of RQ's forks."""
    heavy = ("torch", "transformers")
    code = f"import sys, tokenrelay.worker.{module}; print([name for name in {heavy!r} if name in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "[]"


def test_nothing_unpickles() -> None:
    for file in SOURCES:
        assert not imported_names(file) & {"pickle", "dill", "cloudpickle", "marshal", "shelve"}, file


def test_the_namespace_package_has_no_init() -> None:
    assert [tree for tree in TREES.values() if (tree / "tokenrelay" / "__init__.py").exists()] == []


@pytest.mark.parametrize("tree", TREES)
def test_portions_are_typed_and_named(tree: str) -> None:
    portion = TREES[tree] / "tokenrelay" / tree
    assert (portion / "py.typed").exists()
    assert ast.get_docstring(ast.parse((portion / "__init__.py").read_text("utf-8")))


def test_files_are_short() -> None:
    files = [*SOURCES, *TREES["shared"].rglob("*.lua"), *(ROOT / "tests").rglob("*.py")]
    lines = {str(file): len(file.read_text("utf-8").splitlines()) for file in files}
    assert {file: count for file, count in lines.items() if count > 400} == {}


def test_modules_say_what_they_are() -> None:
    bare = [
        file for file in SOURCES if file.stat().st_size and not ast.get_docstring(ast.parse(file.read_text("utf-8")))
    ]
    assert bare == []


def test_public_classes_are_documented() -> None:
    for file in SOURCES:
        for node in ast.parse(file.read_text("utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                assert ast.get_docstring(node), f"{file}: {node.name} has no docstring"


class TestLifecyclePage:
    """docs/request-lifecycle.md says what the code does."""

    def test_its_diagram_is_current(self) -> None:
        page = LIFECYCLE.read_text("utf-8")
        assert page == lifecycle_docs.with_diagram(page), (
            "the protocol has changed: run python scripts/lifecycle_docs.py"
        )

    def test_its_diagram_has_every_transition(self) -> None:
        arrows = re.findall(r"(\S+) --> (\S+): (.*)", lifecycle_docs.mermaid())
        drawn = {(begin, kind, end) for begin, end, kinds in arrows for kind in kinds.split(", ")}
        table = {
            ("[*]" if begin == NOTHING else str(begin), str(kind), str(end))
            for begin, following in TRANSITIONS.items()
            for kind, end in following.items()
        }
        assert drawn == table

    def test_a_page_without_markers_is_refused(self) -> None:
        with pytest.raises(ValueError, match="has no"):
            lifecycle_docs.with_diagram("# a page")

    def test_its_reply_tables_are_the_scripts_own(self) -> None:
        page = LIFECYCLE.read_text("utf-8")
        tables = dict(re.findall(r"^\| `(\w+)` \| ([^|]*) \|", page, re.MULTILINE))
        for name in (each for plane in SCRIPTS.values() for each in plane if each != "take"):
            own = "Replies: " + script(name).source(modern=False).rpartition("Replies: ")[2]
            returned = set(re.findall(r"return \{ '([A-Z_]+)'", own))
            returned |= {"GAP", "LOST"} if "append_tokens(" in own else set()
            assert returned == set(re.findall(r"`([A-Z_]+)[^`]*`", tables[name])), name

    def test_its_key_table_has_every_key(self) -> None:
        page = LIFECYCLE.read_text("utf-8")
        for key in (
            keys.request("ID"),
            keys.stream("ID"),
            keys.claimed("QUEUE"),
            keys.maintainer("QUEUE"),
            keys.WAKE,
            keys.QUEUED,
            keys.ENDED,
        ):
            assert f"| `{key}` |" in page, key

    def test_it_lists_every_hash_field_that_scripts_write(self) -> None:
        page = LIFECYCLE.read_text("utf-8")
        lua = "\n".join(script(name).source(modern=False) for name in SCRIPTS[keys.Plane.TOKEN])
        written: set[str] = set()
        for arguments in re.findall(r"redis\.call\('HSET', request, (.*?)\)\n", lua, re.DOTALL):
            written |= set(re.findall(r"'([a-z][a-z0-9_]*)'", arguments))
        written -= {str(state) for state in State}
        assert {"prompt_ids", "lease_us", "next", "cancelled_by"} <= written
        assert {name for name in written if f"`{name}`" not in page} == set()
