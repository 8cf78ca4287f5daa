"""Nothing outside the store names a script, a hash or the word of a script's reply; nothing outside the module of keys
spells a key; and no command without a key leaves open which plane's server it is for."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tokenrelay.shared.store.scripts import SCRIPTS, script

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
STORE = ROOT / "shared" / "tokenrelay" / "shared" / "store"
OUTSIDE = [
    file
    for tree in ("producer", "worker", "shared")
    for file in sorted((ROOT / tree).rglob("*.py"))
    if not file.is_relative_to(STORE)
]
LUA = "\n".join(script(name).source(modern=False) for names in SCRIPTS.values() for name in names)
WORDS = set(re.findall(r"return \{ '([A-Z_]+)'", LUA))
HASH_COMMANDS = {"HGET", "HMGET", "HGETALL", "HSET", "HDEL", "HEXISTS", "HINCRBY", "HSETNX"}
SERVER_COMMANDS = {"TIME", "INFO", "PING", "CLIENT"}
SCRIPT_COMMANDS = {"EVAL", "EVALSHA", "FCALL", "SCRIPT_LOAD"}
SHARED = ROOT / "shared" / "tokenrelay" / "shared"
ROOMS_OF_REDIS = (SHARED / "redis", SHARED / "wire" / "keys.py")


def strings(nodes: list[ast.expr]) -> list[str]:
    return [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]


def commands(tree: ast.AST, names: set[str]) -> Iterator[str]:
    """Commands of these names, as tuples."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Tuple) and names & set(strings(node.elts[:1])):
            yield ast.unparse(node)


def methods(tree: ast.AST, names: set[str]) -> Iterator[str]:
    """The same, as methods of redis-py."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr.upper() in names:
            yield ast.unparse(node)


def hashes_named(tree: ast.AST) -> Iterator[str]:
    """Commands on hashes, whatever their fields: a hash is a record with a reader in the store, and no dict."""
    yield from commands(tree, HASH_COMMANDS)
    yield from methods(tree, HASH_COMMANDS)


def scripts_named(tree: ast.AST) -> Iterator[str]:
    """Calls that are built by hand."""
    yield from commands(tree, SCRIPT_COMMANDS)
    yield from methods(tree, SCRIPT_COMMANDS)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("Call", "ScriptCall"):
            yield ast.unparse(node)


def keys_spelled(tree: ast.AST) -> Iterator[str]:
    """Keys and channels by their text."""
    constants = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    yield from (value for value in constants if isinstance(value, str) and re.match(r"(rq|tokenrelay):\S", value))


def planes_unsaid(tree: ast.AST) -> Iterator[str]:
    """Commands without a key, which don't say whose server they are for."""
    yield from commands(tree, SERVER_COMMANDS)


def words_named(tree: ast.AST) -> Iterator[str]:
    """Words of replies, compared or matched."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            yield from (word for word in strings([node.left, *node.comparators]) if word in WORDS)
        if isinstance(node, ast.MatchValue):
            yield from (word for word in strings([node.value]) if word in WORDS)


CHECKS = (hashes_named, scripts_named, words_named, keys_spelled, planes_unsaid)


@pytest.mark.parametrize("named", CHECKS, ids=lambda named: str(named.__name__))
def test_only_the_store_knows_what_redis_holds(named: object) -> None:
    assert callable(named)
    outside = [file for file in OUTSIDE if not any(file.is_relative_to(room) for room in ROOMS_OF_REDIS)]
    found = {str(file.relative_to(ROOT)): list(named(ast.parse(file.read_text("utf-8")))) for file in outside}
    assert {file: names for file, names in found.items() if names} == {}


@pytest.mark.parametrize(
    ("code", "named"),
    [
        ('batch = [("HMGET", key, *fields)]', hashes_named),
        ("redis.hset(key, field, value)", hashes_named),
        ("found = await redis.hgetall(key)", hashes_named),
        ('redis.execute_command("EVALSHA", sha1)\nbatch = [("EVALSHA", sha1, 1, key)]', scripts_named),
        ('key = f"rq:job:{job_id}"', keys_spelled),
        ('redis.publish("tokenrelay:wake", one)', keys_spelled),
        ('batch = [look(one), ("TIME",)]', planes_unsaid),
        ('pipeline.run([Call(script("cancel"), keys.of_request(one), ("rq",))])', scripts_named),
        ('if reply_word(reply) == "FENCED": pass', words_named),
        ('match word:\n    case "GAP": pass', words_named),
    ],
)
def test_it_would_see(code: str, named: object) -> None:
    assert callable(named)
    assert list(named(ast.parse(code)))


def test_the_words_are_found() -> None:
    assert {"OK", "FENCED", "GAP", "NOT_MINE", "DEPENDENTS"} <= WORDS


def test_no_facade_is_left() -> None:
    """Modules that were moved aren't kept under their old names."""
    assert not list((ROOT / "shared" / "tokenrelay" / "shared").glob("rq_jobs.py"))
    assert not (ROOT / "shared" / "tokenrelay" / "shared" / "lua").exists()
    modules = [file for file in OUTSIDE if file.name != "__init__.py"]
    assert [file for file in modules if not any(map(defines, ast.parse(file.read_text("utf-8")).body))] == []


def defines(node: ast.stmt) -> bool:
    """Whether a statement is more than an import or a docstring."""
    return not isinstance(node, ast.Import | ast.ImportFrom | ast.Expr)


UNTYPED = re.compile(r"\b(dict|Mapping|Any)\b")
AS_STORED = {"metadata", "defaults", "body", "prompt_ids", "prompt_texts", "prompt_logprobs", "effective"}
"""JSON whose content isn't the store's: it is given as it stands, or as the object that it is."""


def untyped_results(tree: ast.AST) -> Iterator[str]:
    """Functions, properties and parsed fields that give what the store holds as a dict, or as anything."""
    results = {
        node.name: ast.unparse(node.returns)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and node.returns is not None
    }
    untyped = {"parse_object", *(name for name, result in results.items() if UNTYPED.search(result))}
    for name in sorted(untyped & set(results) - AS_STORED):
        if not name.startswith("_"):
            yield f"{name}: {results[name]}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and "Parsed(" in ast.unparse(node.value):
            readers = {each.id for each in ast.walk(node.value) if isinstance(each, ast.Name)}
            target = ast.unparse(node.targets[0])
            if readers & untyped and target not in AS_STORED:
                yield f"{target}: {ast.unparse(node.value)}"


def test_what_the_store_gives_is_typed() -> None:
    """A record, a reply or a plain value, of which mypy knows each field."""
    found = [
        each for file in sorted(STORE.rglob("*.py")) for each in untyped_results(ast.parse(file.read_text("utf-8")))
    ]
    assert found == []
    assert list(untyped_results(ast.parse("def read(one: str) -> dict[bytes, bytes]: ...")))
    assert list(
        untyped_results(ast.parse("class A:\n    held = Parsed(HELD, lambda value: parse_object(HELD, value))"))
    )
