"""llguidance behind our own names: the only module that imports it.

JSON is compiled without blanks between its parts: where any number is allowed, a draw at a high temperature fills the
answer's budget with them.
"""

from __future__ import annotations

import json
import re
import threading
from functools import cache
from importlib.metadata import version
from typing import TYPE_CHECKING, Final, assert_never

from llguidance import LLExecutor, LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper, regex_to_lark

from tokenrelay.worker.sampling.grammar.calls import calls_source
from tokenrelay.worker.sampling.grammar.grammar import GrammarError
from tokenrelay.worker.sampling.grammar.vocabulary import Vocabulary

if TYPE_CHECKING:
    from tokenrelay.shared import effective
    from tokenrelay.worker.sampling.grammar.grammar import Grammar, Kind

NAME: Final = "llguidance"
Matcher = LLMatcher
_OPTIONS: Final = '%llguidance {"no_forcing": true}'
"""Where only one text may follow, the draw decides how it is split into tokens, as everywhere else."""
_ASCII: Final = "dw"
r"""A pattern's \d and \w, as JSON Schema has them: what matches so also matches where they are Unicode's."""
_REASON_CHARS: Final = 500
_NO_TOKEN: Final = 2**31
"""An ID beyond every vocabulary."""
_PLACE: Final = re.compile(r"(?:at )?(\d+)\((\d+)\): ")
"""The line and column in the source, whose first line is `_OPTIONS`."""


@cache
def library() -> effective.Grammar:
    """What compiles, as a request remembers it: another version may allow other tokens."""
    return {"library": NAME, "version": version(NAME)}


class _Tokens:
    """What llguidance asks of a tokenizer."""

    bos_token_id = None

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.tokens = list(vocabulary.tokens)
        self.eos_token_id = vocabulary.eos_ids[0]
        self.special_token_ids = [each for each, written in enumerate(self.tokens) if not written]

    def __call__(self, text: bytes | str) -> list[int]:
        """Asked only for tokens that a grammar forces, which `_OPTIONS` rules out."""
        raise NotImplementedError


def bind(vocabulary: Vocabulary) -> LLTokenizer:
    """The vocabulary as the library keeps it."""
    return LLTokenizer(TokenizerWrapper(_Tokens(vocabulary)), eos_token=list(vocabulary.eos_ids))


def compile_grammar(tokens: LLTokenizer, source: str, kind: Kind) -> Matcher:
    """A matcher at the begin of an answer, of what `to_source` gives. Raises GrammarError. May take any time, most of
    it without the interpreter: see `trial`."""
    matcher = LLMatcher(tokens, source, log_level=0, limits=_limits())
    if not matcher.is_error():
        matcher.compute_bitmask()
    if matcher.is_error():
        raise GrammarError(_reason(matcher.get_error(), kind))
    return matcher


_FREEING: Final = threading.Lock()
"""The other matcher is one call's at a time."""


@cache
def _executor() -> tuple[LLExecutor, Matcher]:
    """A thread of the library's own. It works without the interpreter only where it is given two matchers."""
    tokens = bind(Vocabulary((b"a", b""), (1,)))
    return LLExecutor(1), LLMatcher(tokens, 'start: "a"', log_level=0)


def free(matcher: Matcher) -> None:
    """Free a matcher's memory while other threads run, and its grammar's where it has no copies.

    A matcher that is given a token which doesn't exist becomes an error, and holds nothing any more. Python would free
    a grammar of 262,144 bytes in up to 40 ms, in which no other thread runs.
    """
    executor, other = _executor()
    with _FREEING:
        executor.consume_token_par([(matcher, _NO_TOKEN), (other, _NO_TOKEN)])


def is_full(matcher: Matcher) -> bool:
    """Whether the lexer's states, or its expressions, have reached their limit. A matcher and all of its copies have
    them in common."""
    return bool(matcher.is_error()) and "lexer error: too many" in matcher.get_error()


def to_source(grammar: Grammar) -> str:
    """The grammar in the library's dialect of Lark. Raises GrammarError.

    Holds the interpreter for 15 ms, where a schema has 262,144 bytes.
    """
    try:
        return _source(grammar)
    except ValueError as error:
        raise GrammarError(_reason(str(error), grammar.kind)) from None


def _source(grammar: Grammar) -> str:
    match grammar.kind:
        case "json_object" | "json_schema":
            start = "%json " + _schema(grammar)
        case "regex":
            start = f"/{regex_to_lark(grammar.text, _ASCII)}/"
        case "choice":
            # One lexeme: as a rule of as many alternatives, a mask takes 200 times as long.
            start = "CHOICE\nCHOICE: " + "\n | ".join(map(json.dumps, json.loads(grammar.text)))
        case "lark":
            if re.search(r"^\s*%llguidance", grammar.text, re.MULTILINE):
                raise GrammarError("%llguidance isn't supported: the options of the grammar's compiler are fixed")
            return f"{_OPTIONS}\n{grammar.text}"
        case "calls":
            return f"{_OPTIONS}\n{calls_source(grammar.text, _schema)}"
        case _:
            assert_never(grammar.kind)
    return f"{_OPTIONS}\nstart: {start}"


def _schema(grammar: Grammar) -> str:
    """The schema with the compiler's options in it. Raises GrammarError."""
    if grammar.kind == "json_object":
        schema: object = {"type": "object"}
    else:
        try:
            schema = json.loads(grammar.text, parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            raise GrammarError(f"the schema isn't JSON: {error}") from None
    if schema is True:
        schema = {}
    if not isinstance(schema, dict):
        raise GrammarError("the schema isn't a JSON object")
    options = {
        "whitespace_flexible": False,
        "item_separator": ",",
        "key_separator": ":",
        "lenient": not grammar.strict,
        "coerce_one_of": not grammar.strict,
    }
    return json.dumps({**schema, "x-guidance": options})


def _refuse_constant(name: str) -> object:
    raise ValueError(f"it holds {name}")


def _limits() -> LLParserLimits:
    """Of a token: 25 ms of an ambiguous grammar, where the library's own limits allow 700 ms that every neighbour in
    the batch waits for. Of a grammar's memory: lexer states, a fifth of the library's own limit."""
    return LLParserLimits(step_max_items=2_000, max_items_in_row=1_000, max_lexer_states=50_000, verbose_errors=False)


def _reason(message: str, kind: Kind) -> str:
    """The message on one line, without the parser's state and the excerpts of the source, which are indented."""
    lines = re.split(r"<state>|<non-verbose/>", message)[0].splitlines()
    line = " ".join(" ".join([each for each in lines if not each.startswith(" ")] or lines).split())
    line = line.replace("regex parse error: error: ", "regex parse error: ")
    line = re.sub(r'invalid regex ".*" \(in regex\): regex parse error: ', "invalid regex: ", line)
    if place := _PLACE.match(line):
        line = line[place.end() :]
        if kind == "lark":
            line = f"line {int(place[1]) - 1}, column {place[2]}: {line}"
    if line in ("", "NoExtensionBias"):
        return "no text matches it"
    return line if len(line) <= _REASON_CHARS else line[: _REASON_CHARS - 3] + "..."
