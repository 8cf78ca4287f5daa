"""The mask of the next token: random grammars, random draws among all allowed tokens, resumed anywhere."""

from __future__ import annotations

import json
import random
import re
import threading
import time
from typing import TYPE_CHECKING, Any

import jsonschema_rs
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.grammars import allowed, vocabulary, walk
from tokenrelay.worker.sampling.grammar.compiler import GrammarCompiler
from tokenrelay.worker.sampling.grammar.grammar import Grammar, GrammarError
from tokenrelay.worker.sampling.grammar.matcher import AnswerMask

if TYPE_CHECKING:
    from collections.abc import Iterator

EOS = 0
TOKENS = 300
"""Of a walk: an infinite temperature doesn't end a string soon."""
many = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

ARITHMETIC = """
start: sum
sum: product (("+" | "-") product)*
product: atom (("*" | "/") atom)*
atom: NUMBER | "(" sum ")"
NUMBER: /[1-9][0-9]{0,3}/
"""


@pytest.fixture(scope="module")
def compiler() -> Iterator[GrammarCompiler]:
    compiler = GrammarCompiler(vocabulary())
    yield compiler
    compiler.close()


def text_of(ids: list[int]) -> str:
    """Fails for bytes that aren't UTF-8."""
    return b"".join(vocabulary().tokens[token_id] for token_id in ids).decode()


def scalars() -> st.SearchStrategy[dict[str, Any]]:
    return st.one_of(
        st.integers(0, 20).map(lambda most: {"type": "string", "maxLength": most}),
        st.sampled_from(["^[a-z]{2,9}$", "^(ab|c)+d?$", r"^\d{3}-\d{2}$", "ü", "^世?界*$"]).map(
            lambda pattern: {"type": "string", "pattern": pattern, "maxLength": 40}
        ),
        st.sampled_from(["date", "date-time", "time", "uuid", "ipv4"]).map(
            lambda name: {"type": "string", "format": name}
        ),
        st.tuples(st.integers(-500, 500), st.integers(0, 9999)).map(
            lambda pair: {"type": "integer", "minimum": pair[0], "maximum": sum(pair)}
        ),
        st.integers(-9, 9).map(lambda least: {"type": "number", "exclusiveMinimum": least, "maximum": least + 100}),
        st.lists(
            st.one_of(st.text(max_size=8), st.integers(-(2**53), 2**53), st.booleans(), st.none()),
            min_size=1,
            max_size=5,
        ).map(lambda values: {"enum": values}),
        st.just({"type": ["boolean", "null"]}),
        st.text(max_size=10).map(lambda value: {"const": value}),
    )


def containers(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    names = st.text('abcdeü_ "\\', min_size=1, max_size=6)
    return st.one_of(
        st.tuples(st.dictionaries(names, inner, min_size=1, max_size=4), st.randoms(use_true_random=False)).map(
            lambda pair: {
                "type": "object",
                "properties": pair[0],
                "required": [name for name in pair[0] if pair[1].random() < 0.6],
                "additionalProperties": False,
            }
        ),
        st.tuples(inner, st.integers(0, 2)).map(
            lambda pair: {"type": "array", "items": pair[0], "minItems": pair[1], "maxItems": pair[1] + 2}
        ),
        st.lists(inner, min_size=1, max_size=3).map(
            lambda items: {"type": "array", "prefixItems": items, "items": False, "minItems": len(items)}
        ),
        st.lists(inner, min_size=1, max_size=3).map(lambda choices: {"anyOf": choices}),
    )


SCHEMAS = st.recursive(scalars(), containers, max_leaves=6)


def patterns(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.one_of(
        st.lists(inner, min_size=2, max_size=3).map("".join),
        st.lists(inner, min_size=2, max_size=3).map(lambda each: f"({'|'.join(each)})"),
        st.tuples(inner, st.sampled_from(["?", "{2}", "{1,3}", "*", "+"])).map(lambda pair: f"({pair[0]}){pair[1]}"),
    )


PATTERNS = st.recursive(
    st.sampled_from(["a", "bc", "[a-z]", "[^x]", ".", r"\d", r"\w", "Grü", "界", "🌍", r"\.", '"', r"\{", "sunny"]),
    patterns,
    max_leaves=8,
)


def check_resuming(grammar: Grammar, compiler: GrammarCompiler, rng: random.Random) -> tuple[str, bool]:
    """Walk; then the masks that another worker computes from any of the answer's tokens on must be the same."""
    compiled = compiler.compile(grammar)
    ids, masks, complete = walk(compiled, rng, TOKENS)
    for cut in {0, len(ids) // 2, len(masks) - 1, rng.randrange(len(masks))}:
        resumed = AnswerMask(compiled)
        for position in range(cut, min(cut + 5, len(masks))):
            assert torch.equal(resumed(ids[:position]), masks[position])
    return text_of(ids) if complete else "", complete


def compiled_or_skipped(grammar: Grammar, compiler: GrammarCompiler) -> bool:
    """Whether it compiles; a grammar that nothing matches may be refused, and no other of these."""
    try:
        compiler.compile(grammar)
    except GrammarError:
        return False
    return True


@many
@given(SCHEMAS, st.integers(0, 2**32))
def test_a_complete_answer_validates(compiler: GrammarCompiler, schema: dict[str, Any], seed: int) -> None:
    grammar = Grammar("json_schema", json.dumps(schema))
    text, complete = check_resuming(grammar, compiler, random.Random(seed))
    if complete:
        validator = jsonschema_rs.validator_for(schema, validate_formats=True)
        # RFC 3339's grammar, which is compiled, has a leap second in every minute and a leap day in every year.
        text = text.replace(":60", ":59").replace("-02-29", "-02-28")
        assert validator.is_valid(json.loads(text)), text


@many
@given(PATTERNS, st.integers(0, 2**32))
def test_a_complete_answer_matches(compiler: GrammarCompiler, pattern: str, seed: int) -> None:
    text, complete = check_resuming(Grammar("regex", pattern), compiler, random.Random(seed))
    assert not complete or re.fullmatch(pattern, text), text


@many
@given(st.lists(st.text(min_size=1, max_size=12), min_size=1, max_size=20, unique=True), st.integers(0, 2**32))
def test_a_complete_answer_is_one_of_the_choices(compiler: GrammarCompiler, choices: list[str], seed: int) -> None:
    grammar = Grammar.of({"type": "choice", "value": choices, "strict": True})
    text, complete = check_resuming(grammar, compiler, random.Random(seed))
    assert complete
    assert text in choices


@pytest.mark.parametrize("seed", range(20))
def test_a_complete_answer_is_of_the_lark_grammar(compiler: GrammarCompiler, seed: int) -> None:
    text, complete = check_resuming(Grammar("lark", ARITHMETIC), compiler, random.Random(seed))
    assert not complete or re.fullmatch(r"[0-9+\-*/()]+", text)
    if complete and "/" not in text:
        assert isinstance(eval(text), int)


def test_random_walks_of_each_kind_complete(compiler: GrammarCompiler) -> None:
    """Otherwise the tests above would hold for nothing."""
    rng = random.Random(5)
    schema = {"type": "object", "properties": {"a": {"enum": [1, 2]}, "b": {"type": "boolean"}}, "required": ["a"]}
    closed = json.dumps(schema | {"additionalProperties": False})
    for grammar in (Grammar("json_schema", closed), Grammar("regex", "(a|bc){1,3}"), Grammar("lark", ARITHMETIC)):
        ends = [walk(compiler.compile(grammar), rng, TOKENS)[2] for _ in range(30)]
        assert sum(ends) >= 10, grammar


def test_a_complete_answer_allows_the_end_alone(compiler: GrammarCompiler) -> None:
    mask = AnswerMask(compiler.compile(Grammar("regex", "abc")))
    a, b, c = (vocabulary().tokens.index(letter) for letter in (b"a", b"b", b"c"))
    assert allowed(mask([a, b, c])) == [EOS]
    assert EOS not in allowed(mask([a, b]))
    assert allowed(mask([a, b, c, EOS])) in ([EOS], [])  # a draw that is discarded


def test_a_dead_end_is_an_empty_mask(compiler: GrammarCompiler) -> None:
    """Tokens that the grammar doesn't have: no exception, and what follows is as it was."""
    mask = AnswerMask(compiler.compile(Grammar("regex", "abc")))
    a, c = (vocabulary().tokens.index(letter) for letter in (b"a", b"c"))
    before = mask([a])
    assert allowed(mask([a, c])) == []
    assert allowed(mask([a, c, c])) == []
    assert torch.equal(mask([a]), before)


def test_a_kept_matcher_is_only_a_cache(compiler: GrammarCompiler) -> None:
    """Asked in any order, an answer's masks are those of a matcher that was made for each alone."""
    compiled = compiler.compile(Grammar("json_object"))
    ids, masks, _ = walk(compiled, random.Random(3), 40)
    mask, rng = AnswerMask(compiled), random.Random(4)
    for position in [rng.randrange(len(masks)) for _ in range(60)]:
        assert torch.equal(mask(ids[:position]), masks[position])


def test_json_has_no_blanks_between_its_parts(compiler: GrammarCompiler) -> None:
    """Where any number is allowed, a draw at a high temperature fills the budget with them."""
    mask = AnswerMask(compiler.compile(Grammar("json_object")))
    assert [vocabulary().tokens[each][:1] for each in allowed(mask([]))] == [b"{"] * len(allowed(mask([])))
    blank = vocabulary().tokens.index(b" ")
    assert blank not in allowed(mask([vocabulary().tokens.index(b"{")]))


def test_other_answers_leave_no_trace(compiler: GrammarCompiler) -> None:
    """Copies of a matcher share the lexer's states, of which the library allows a number: many answers under a pattern
    that needs a new one for almost each token reach it, and theirs and later ones' masks are as at first."""
    pattern, rng = "(a|b)*a(a|b){16}", random.Random(1)
    compiled = compiler.compile(Grammar("regex", pattern))
    a, b = (vocabulary().tokens.index(letter) for letter in (b"a", b"b"))
    first = AnswerMask(compiled)([])
    used = compiled.root
    for _ in range(60):
        mask, ids = AnswerMask(compiled), rng.choices([a, b], k=1200)
        for position in range(0, len(ids), 1 if compiled.root is used else 400):
            assert {a, b} <= set(allowed(mask(ids[:position])))
    assert compiled.root is not used
    assert torch.equal(AnswerMask(compiled)([]), first)


def test_an_answer_that_reaches_a_limit_of_the_lexer_ends_alone(compiler: GrammarCompiler) -> None:
    """Of expressions here: a part of what a matcher shares with its copies. Another answer is as far as it was."""
    compiled = compiler.compile(Grammar("regex", "((a{1,1000}){1,1000}){1,1000}"))
    a = vocabulary().tokens.index(b"a")
    ends = []
    for _ in range(2):
        mask = AnswerMask(compiled)
        ends.append(next(length for length in range(1000) if not mask([a] * length).any()))
    assert ends[0] == ends[1] > 0


def test_an_answer_that_is_continued_lets_other_threads_run(compiler: GrammarCompiler) -> None:
    """An ambiguous grammar takes milliseconds for each token, with the interpreter held: others wait for one."""
    compiled = compiler.compile(Grammar("lark", 'start: e\ne: e e | "a"'))
    a = vocabulary().tokens.index(b"a")
    gaps, over = [], threading.Event()

    def look() -> None:
        last = time.perf_counter()
        while not over.wait(0.0005):
            now = time.perf_counter()
            gaps.append(now - last)
            last = now

    watching = threading.Thread(target=look)
    watching.start()
    try:
        began = time.perf_counter()
        assert allowed(AnswerMask(compiled)([a] * 250))
        whole_s = time.perf_counter() - began
    finally:
        over.set()
        watching.join()
    assert max(gaps) < whole_s / 4
