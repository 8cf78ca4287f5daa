"""Nothing outside the store names a script, a field of a hash or the word of a script's reply."""

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
HASH_COMMANDS = {"HGET", "HMGET", "HSET", "HDEL", "HEXISTS", "HINCRBY", "HSETNX"}


def strings(nodes: list[ast.expr]) -> list[str]:
    return [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]


def fields_named(tree: ast.AST) -> Iterator[str]:
    """Fields in commands, as tuples or as methods of redis-py."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Tuple) and (words := strings(node.elts)) and words[0] in HASH_COMMANDS:
            yield from words[1:]
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr.upper() in HASH_COMMANDS
        ):
            yield from strings(node.args[1::2] if node.func.attr == "hset" else node.args)
            yield from (word for keyword in node.keywords for word in keys_of(keyword.value))


def keys_of(node: ast.expr) -> list[str]:
    return strings([key for key in node.keys if key is not None]) if isinstance(node, ast.Dict) else []


def scripts_named(tree: ast.AST) -> Iterator[str]:
    """Calls that are built by hand."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("Call", "ScriptCall"):
            yield ast.unparse(node)


def words_named(tree: ast.AST) -> Iterator[str]:
    """Words of replies, compared or matched."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            yield from (word for word in strings([node.left, *node.comparators]) if word in WORDS)
        if isinstance(node, ast.MatchValue):
            yield from (word for word in strings([node.value]) if word in WORDS)


@pytest.mark.parametrize("named", [fields_named, scripts_named, words_named], ids=lambda named: str(named.__name__))
def test_only_the_store_knows_what_redis_holds(named: object) -> None:
    assert callable(named)
    found = {str(file.relative_to(ROOT)): list(named(ast.parse(file.read_text("utf-8")))) for file in OUTSIDE}
    assert {file: names for file, names in found.items() if names} == {}


@pytest.mark.parametrize(
    ("code", "named"),
    [
        ('batch = [("HMGET", key, "state", "fence")]', fields_named),
        ('redis.hset(key, "state", "idle")', fields_named),
        ('redis.hset(key, mapping={"state": "idle"})', fields_named),
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
