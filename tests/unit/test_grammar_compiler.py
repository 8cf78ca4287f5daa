"""Compiling grammars: refusals with their reason, and hostile ones within bounds."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from tests.grammars import allowed, vocabulary
from tokenrelay.shared.errors import EngineError
from tokenrelay.worker.sampling.grammar.compiler import MOST_WAITING, GrammarCompiler, outcome
from tokenrelay.worker.sampling.grammar.grammar import Grammar, GrammarError
from tokenrelay.worker.sampling.grammar.library import bind, compile_grammar, free, to_source
from tokenrelay.worker.sampling.grammar.matcher import AnswerMask
from tokenrelay.worker.sampling.grammar.trial import COMMAND, Trial

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

EASY = Grammar("regex", "easy")


@pytest.fixture
def trials() -> list[Trial]:
    """Those of the compiler."""
    return []


@pytest.fixture
def compiler(trials: list[Trial]) -> Iterator[GrammarCompiler]:
    def trial() -> Trial:
        trials.append(Trial())
        return trials[-1]

    compiler = GrammarCompiler(vocabulary(), trial=trial)
    yield compiler
    compiler.close()


def schema(value: dict[str, Any], *, strict: bool = True) -> Grammar:
    return Grammar("json_schema", json.dumps(value), strict)


@pytest.mark.parametrize(
    ("grammar", "reason"),
    [
        (Grammar("regex", "[a/"), "^response_format: invalid regex: unclosed character class$"),
        (
            schema({"pattern": "(a"}),
            "^response_format: failed to compile JSON schema: regex parse error: unclosed group$",
        ),
        (Grammar("lark", "start: b\n\nb: nothing"), '^response_format: line 3, column 4: unknown name: "nothing"$'),
        (Grammar("lark", 'begin: "a"'), "start"),
        (Grammar("json_schema", '{"type":'), "isn't JSON"),
        (Grammar("json_schema", "[]"), "JSON object"),
        (schema({"type": "integer", "minimum": 5, "maximum": 4}), "minimum"),
        (schema({"$ref": "#"}), "no text matches"),
        (schema({"$ref": "https://example.com/schema.json"}), "example.com"),
        (schema({"type": "object", "if": {}}), "if"),
        (schema({"type": "object", "if": {}, "x-guidance": {"lenient": True}}), "if"),
    ],
)
def test_a_grammar_that_cant_be_compiled_says_why(compiler: GrammarCompiler, grammar: Grammar, reason: str) -> None:
    """The last one asks the library to let unknown keywords pass: its answers wouldn't validate."""
    with pytest.raises(GrammarError, match=reason) as refused:
        compiler.compile(grammar)
    assert (refused.value.code, refused.value.field) == ("invalid_grammar", "response_format")
    assert refused.value.reason
    assert len(refused.value.message) < 600
    assert "<state>" not in refused.value.message
    assert "%llguidance" not in refused.value.message


def test_without_strict_unknown_keywords_have_no_effect(compiler: GrammarCompiler) -> None:
    compiler.compile(schema({"type": "boolean", "if": {"const": True}}, strict=False))


HOSTILE = {
    "it takes hours": schema(
        {"allOf": [{"type": "integer", "multipleOf": each} for each in (3, 7, 11, 13, 17, 19, 23)]}
    ),
    "its stack overflows": Grammar(
        "lark", "start: r0\n" + "".join(f'r{n}: "a" r{n + 1} | "b" r{n + 1}\n' for n in range(8_000)) + 'r8000: "c"\n'
    ),
    "quadratic": schema({"type": "object", "properties": {f"p{n}": {"type": "string"} for n in range(8_000)}}),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_grammar_is_refused_and_the_next_is_compiled(compiler: GrammarCompiler, name: str) -> None:
    """Without the process of its own the first never returns, and the second ends the worker."""
    with pytest.raises(GrammarError, match="too complex"):
        compiler.compile(HOSTILE[name])
    compiler.compile(EASY)


@pytest.mark.parametrize(
    "grammar",
    [
        schema({"type": "string", "minLength": 10, "maxLength": 1_000_000_000}),
        schema({"type": "array", "items": {"type": "string"}, "minItems": 100_000}),
        schema({"enum": [f"{n * 7919:012d}" for n in range(17_000)]}),
        Grammar("regex", "(a|b)*a(a|b){30}"),
        Grammar("regex", "((a{1,100}){1,100}){1,100}"),
        Grammar("regex", "(x+x+)+y"),
        Grammar("lark", 'start: start start start | "a" | ""'),
    ],
)
def test_a_large_grammar_within_bounds_gives_masks(compiler: GrammarCompiler, grammar: Grammar) -> None:
    assert allowed(AnswerMask(compiler.compile(grammar))([]))


def test_a_refusal_is_kept_too(compiler: GrammarCompiler) -> None:
    """A hostile grammar costs its second once, however often it is sent."""
    hostile = HOSTILE["it takes hours"]
    with pytest.raises(GrammarError):
        compiler.compile(hostile)
    for _ in range(100):
        with pytest.raises(GrammarError, match="processor time"):
            compiler.compile(hostile)
    assert compiler.compile(EASY) is compiler.compile(EASY)


def test_the_latest_used_grammars_are_kept(compiler: GrammarCompiler) -> None:
    easy = compiler.compile(EASY)
    for number in range(63):
        compiler.compile(Grammar("regex", f"{number}"))
    assert compiler.compile(EASY) is easy
    for number in range(70):
        compiler.compile(Grammar("regex", f"b{number}"))
    assert compiler.compile(EASY) is not easy


def test_a_compiling_process_that_was_killed_is_replaced(compiler: GrammarCompiler, trials: list[Trial]) -> None:
    compiler.compile(EASY)
    process = trials[-1]._process  # the only one, where nothing is compiled at the same time
    assert process is not None
    assert [each._process for each in trials[:-1]] == [None] * (len(trials) - 1)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    compiler.compile(Grammar("regex", "another"))


class HeldTrial(Trial):
    """Waits, where the grammar's text begins with "held", until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.let_go = threading.Event()

    def compile(self, grammar: Grammar) -> str:
        if grammar.text.startswith("held"):
            self.let_go.wait()
        return super().compile(grammar)


@pytest.fixture
def held() -> Iterator[tuple[GrammarCompiler, Callable[[], None]]]:
    """A compiler, and what lets the held grammars go."""
    trials: list[HeldTrial] = []

    def trial() -> Trial:
        trials.append(HeldTrial())
        return trials[-1]

    def let_go() -> None:
        for each in trials:
            each.let_go.set()

    compiler = GrammarCompiler(vocabulary(), trial=trial)
    yield compiler, let_go
    let_go()
    compiler.close()


def test_others_are_compiled_beside_one_that_takes_long(held: tuple[GrammarCompiler, Callable[[], None]]) -> None:
    compiler, let_go = held
    slow = compiler.begin(Grammar("regex", "held"))
    assert compiler.begin(Grammar("regex", "held")) is slow
    assert allowed(AnswerMask(compiler.compile(EASY))([]))
    assert not slow.done()
    let_go()
    assert allowed(AnswerMask(outcome(slow))([]))


def test_grammars_that_wait_are_limited(held: tuple[GrammarCompiler, Callable[[], None]]) -> None:
    """Those that are over the limit aren't refused: their requests are taken again later."""
    compiler, let_go = held
    waiting = [compiler.begin(Grammar("regex", f"held{n}")) for n in range(MOST_WAITING)]
    with pytest.raises(EngineError, match="16 grammars wait"):
        compiler.begin(EASY)
    assert compiler.begin(Grammar("regex", "held3")) is waiting[3]
    let_go()
    for each in waiting:
        outcome(each)
    compiler.compile(EASY)


@pytest.mark.parametrize("command", [("false",), ("/none",)])
def test_no_process_is_no_refusal(command: tuple[str, ...]) -> None:
    """Of a host without memory, say: what failed is tried again when it is asked for the next time."""
    commands = [COMMAND, command]

    class Failing(Trial):
        def compile(self, grammar: Grammar) -> str:
            self.command = commands.pop() if commands else COMMAND
            return super().compile(grammar)

    compiler = GrammarCompiler(vocabulary(), trial=Failing)
    try:
        with pytest.raises(EngineError, match="doesn't start"):
            compiler.compile(EASY)
        compiler.compile(EASY)
    finally:
        compiler.close()


def test_a_process_without_processor_time_is_no_refusal() -> None:
    """It started, and then the host had no time for it: the grammar may be as good as any."""
    silent = (sys.executable, "-c", 'import sys; print(\'["", ""]\', flush=True); sys.stdin.read()')
    trial = Trial(silent, wall_s=3.0)
    with pytest.raises(EngineError, match="hasn't answered for 3 s"):
        trial.compile(EASY)


def test_grammars_are_freed_by_several_threads() -> None:
    """As by those that compile; what one of them raised would fail the request that it compiled for."""
    tokens = bind(vocabulary())
    parts = [[compile_grammar(tokens, to_source(EASY), "regex") for _ in range(200)] for _ in range(4)]

    def free_all(part: list[Any]) -> None:
        for each in part:
            free(each)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(free_all, parts))
    assert all(each.is_error() for part in parts for each in part)


def test_a_grammar_is_freed_once_it_is_neither_kept_nor_used() -> None:
    """Without the interpreter, in the thread that compiles the next one: its matcher becomes an error by that."""
    compiler = GrammarCompiler(vocabulary(), kept=1)
    try:
        compiled = compiler.compile(EASY)
        mask, root = AnswerMask(compiled), compiled.root
        del compiled
        for number in range(3):
            compiler.compile(Grammar("regex", f"{number}"))
            assert allowed(mask([]))
        del mask
        compiler.compile(Grammar("regex", "last"))
    finally:
        compiler.close()
    assert root.is_error()
