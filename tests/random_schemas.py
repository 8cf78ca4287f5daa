"""Random JSON schemas, as applications write them, and random patterns. Each has an answer."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any, Final

import jsonschema_rs

from tests.grammars import vocabulary

if TYPE_CHECKING:
    from collections.abc import Callable

Schema = dict[str, Any]

NAMES = (
    "id", "name", "userName", "created_at", "e-mail", "größe", "città", "名前", "тип", "🌍", "a.b", "$value", "@type",
    'quo"te', "back\\slash", "with blank", "x", "items", "type", "properties", "0",
)  # fmt: skip
TEXTS = (
    "clear",
    "räin",
    "snow 🌍",
    "",
    'say "hi"',
    "a\\b",
    "tab\there",
    "line\nend",
    "世界",
    "/",
    "</script>",
    "null",
    "1",
)
STRING_PATTERNS = (
    r"^[A-Z]{2,3}-\d{1,6}$", r"^\d{5}(-\d{4})?$", r"^#[0-9a-fA-F]{6}$", r"^v?\d+\.\d+\.\d+$", "^[a-z][a-z0-9_]{0,15}$",
    r"^(\+\d{1,3} )?\(?\d{2,4}\)?[ -]\d{3,8}$", "^[^/]+/[^/]+$", "^(mon|tue|wed)s?$", "[0-9]", "^ü?[世界]{1,3}$", 
    r"\.json$", r"^[!-~]{1,8}$", r"^[\w.]{1,9}@[\w]{1,9}\.(com|org)$",
)  # fmt: skip
FORMATS = ("date", "date-time", "time", "uuid", "ipv4", "ipv6", "email", "hostname", "uri", "duration")


def random_schema(rng: Random) -> Schema:
    """An object mostly, with the annotations and definitions that generators of schemas write."""
    schema = _object(rng, 3) if rng.random() < 0.7 else _schema(rng, 3)
    kind = rng.randrange(6)
    if kind == 0:
        return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Answer", **schema}
    if kind == 1:
        shared = {f"Def{n}": _schema(rng, 1) for n in range(rng.randint(1, 3))}
        names = rng.sample(NAMES, 3)
        properties = {name: {"$ref": f"#/$defs/{rng.choice(list(shared))}"} for name in names}
        return {"$defs": shared, **_closed(rng, properties)}
    if kind == 2:
        return _recursive(rng)
    return schema


def _schema(rng: Random, depth: int) -> Schema:
    makers: tuple[Callable[[Random, int], Schema], ...] = (_object, _array, _union, _together)
    if depth == 0 or rng.random() < 0.5:
        schema = rng.choice((_string, _integer, _number, _constant, _plain))(rng)
    else:
        schema = rng.choice(makers)(rng, depth - 1)
    if rng.random() < 0.2:
        schema = {**schema, "description": "what it is", "examples": [None], "default": None}
    return schema


def _object(rng: Random, depth: int) -> Schema:
    properties = {name: _schema(rng, depth) for name in rng.sample(NAMES, rng.randint(0, 5))}
    return _closed(rng, properties)


def _closed(rng: Random, properties: dict[str, Schema]) -> Schema:
    schema: Schema = {"type": "object", "properties": properties}
    schema["required"] = [name for name in properties if rng.random() < 0.6]
    kind = rng.randrange(5)
    if kind < 3:
        schema["additionalProperties"] = False
    elif kind == 3:
        schema["additionalProperties"] = rng.choice((_integer, _constant, _plain))(rng)
    return schema


def _array(rng: Random, depth: int) -> Schema:
    if rng.random() < 0.3:
        items = [_schema(rng, depth) for _ in range(rng.randint(1, 3))]
        return {
            "type": "array",
            "prefixItems": items,
            "items": rng.choice((False, _plain(rng))),
            "minItems": len(items),
        }
    least = rng.randint(0, 3)
    schema = {"type": "array", "items": _schema(rng, depth), "minItems": least}
    return schema if rng.random() < 0.2 else {**schema, "maxItems": least + rng.randint(0, 4)}


def _union(rng: Random, depth: int) -> Schema:
    if rng.random() < 0.3:  # an optional value
        return {"anyOf": [_schema(rng, depth), {"type": "null"}]}
    if rng.random() < 0.4:  # told apart by a member
        names = rng.sample(TEXTS, 3)
        return {
            "anyOf": [
                {**_object(rng, depth), "properties": {"kind": {"const": name}}, "required": ["kind"]} for name in names
            ]
        }
    return {"anyOf": [_schema(rng, depth) for _ in range(rng.randint(1, 4))]}


def _together(rng: Random, _: int) -> Schema:
    least = rng.randint(-9, 9)
    return {"type": "integer", "allOf": [{"minimum": least}, {"maximum": least + rng.randint(0, 99)}]}


def _recursive(rng: Random) -> Schema:
    node = {
        "type": "object",
        "properties": {
            "value": _schema(rng, 1),
            "children": {"type": "array", "items": {"$ref": "#/$defs/node"}, "maxItems": 2},
        },
        "required": ["value", "children"],
        "additionalProperties": False,
    }
    chain = {"anyOf": [{"type": "null"}, _closed_list({"$ref": "#/$defs/node"})]}
    return {"$defs": {"node": rng.choice((node, chain))}, "$ref": "#/$defs/node"}


def _closed_list(following: Schema) -> Schema:
    return {
        "type": "object",
        "properties": {"head": {"type": "integer"}, "rest": following},
        "required": ["head", "rest"],
        "additionalProperties": False,
    }


def _string(rng: Random) -> Schema:
    kind = rng.randrange(4)
    if kind == 0:
        return {"type": "string", "pattern": rng.choice(STRING_PATTERNS)}
    if kind == 1:
        form = rng.choice(FORMATS)
        # Formats hold by their grammar: the one of email has no limit of length.
        return {"type": "string", "format": form, **({"maxLength": 60} if form == "email" else {})}
    if kind == 2:
        return {"type": "string"}
    least = rng.randint(0, 5)
    return {"type": "string", "minLength": least, "maxLength": least + rng.randint(0, 20)}


def _integer(rng: Random) -> Schema:
    least = rng.choice((-1, 1)) * rng.randrange(10 ** rng.randint(1, 9))
    span = rng.randrange(10 ** rng.randint(1, 9))
    bounds: tuple[Schema, ...] = (
        {},
        {"minimum": least},
        {"maximum": least},
        {"minimum": least, "maximum": least + span},
        {"exclusiveMinimum": least, "exclusiveMaximum": least + span + 2},
        {"multipleOf": rng.choice((2, 5, 7, 10, 25, 100))},
        {"minimum": 0, "maximum": 1000, "multipleOf": 5},
    )
    return {"type": "integer", **rng.choice(bounds)}


def _number(rng: Random) -> Schema:
    least = round(rng.uniform(-1000, 1000), rng.randint(0, 4))
    span = round(rng.uniform(0.01, 500), rng.randint(2, 4))
    bounds: tuple[Schema, ...] = (
        {},
        {"minimum": least},
        {"exclusiveMaximum": least},
        {"minimum": least, "maximum": round(least + span, 6)},
        {"exclusiveMinimum": least, "exclusiveMaximum": round(least + span, 6)},
        {"minimum": 0, "maximum": 1},
    )
    return {"type": "number", **rng.choice(bounds)}


def _constant(rng: Random) -> Schema:
    values: list[Any] = [*rng.sample(TEXTS, 3), rng.randint(-99, 99), 1.5, True, None, {"a": [1, "ü"]}, [], {}]
    if rng.random() < 0.3:
        return {"const": rng.choice(values)}
    return {"enum": rng.sample(values, rng.randint(1, 5))}


def _plain(rng: Random) -> Schema:
    return rng.choice(
        (
            {"type": "boolean"},
            {"type": "null"},
            {"type": ["string", "null"], "maxLength": 9},
            {"type": ["integer", "boolean"]},
            {"type": "integer", "minimum": 0, "maximum": 9},
        )
    )


CLOSING = {at: 12.0 for at, written in enumerate(vocabulary().tokens) if not set(written) - set(b'"}],')}
"""Biases that bring answers to their ends: of tokens that close something, or separate what is complete."""

LITERALS = ("a", "bc", "Grü", "界", "🌍", r"\.", '"', r"\{", r"\}", r"\\", "sunny", " ", "/", r"\t", "-", "0x")
CLASSES = (
    "[a-z]",
    "[^x]",
    ".",
    r"\d",
    r"\w",
    r"\s",
    r"\S",
    r"\D",
    "[A-Fa-f0-9]",
    r"[^\s\"]",
    "[世界ü]",
    r"[\w.-]",
    "[^a-zA-Z]",
)
REPEATS = ("?", "{2}", "{1,3}", "*", "+", "{0,5}", "{3,}", "*?", "+?")


_BLANKS: Final = r"\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
_IN_PYTHON: Final = {
    r"[^\s\"]": f'[^{_BLANKS}"]', r"[\w.-]": "[a-zA-Z0-9_.-]", r"\s": f"[{_BLANKS}]", r"\S": f"[^{_BLANKS}]",
    r"\d": "[0-9]", r"\D": "[^0-9]", r"\w": "[a-zA-Z0-9_]",
}  # fmt: skip
r"""A pattern's \d and \w are ASCII, its \s is Unicode's White_Space: not quite Python's."""


def in_python(pattern: str) -> str:
    """A random pattern as Python's `re` has it."""
    return re.sub(r"\\.|\[[^]]*]", lambda found: _IN_PYTHON.get(found[0], found[0]), pattern)


def random_pattern(rng: Random, depth: int = 4) -> str:
    """A pattern that `in_python` translates."""
    kind = rng.randrange(5) if depth else 0
    if kind <= 1:
        return rng.choice((rng.choice(LITERALS), rng.choice(CLASSES)))
    parts = [random_pattern(rng, depth - 1) for _ in range(rng.randint(2, 4))]
    if kind == 2:
        return "".join(parts)
    if kind == 3:
        return f"({'?:' * rng.randrange(2)}{'|'.join(parts)})"
    return f"({parts[0]}){rng.choice(REPEATS)}"


@dataclass(frozen=True, slots=True)
class Format:
    """An option `response_format`, and whether a complete answer matches it."""

    option: dict[str, Any]
    is_valid: Callable[[str], bool]


def random_format(seed: int) -> Format:
    """A schema for two of three seeds, a pattern for one."""
    rng = Random(seed)
    if seed % 3:
        schema = random_schema(rng)
        return Format({"type": "json_schema", "value": json.dumps(schema, ensure_ascii=False)}, _fits(schema))
    pattern = random_pattern(rng)
    return Format({"type": "regex", "value": pattern}, _matches(pattern))


def _fits(schema: Schema) -> Callable[[str], bool]:
    validator = jsonschema_rs.validator_for(schema, validate_formats=True)

    def is_valid(text: str) -> bool:
        # RFC 3339's grammar, which is compiled, has a leap second in every minute and a leap day in every year.
        text = re.sub(r"(\d\d:\d\d):60", r"\1:59", text).replace("-02-29", "-02-28")
        return validator.is_valid(json.loads(text, parse_float=_finite))

    return is_valid


def _finite(text: str) -> float:
    """A number without bounds may have an exponent that no float has."""
    return max(-sys.float_info.max, min(float(text), sys.float_info.max))


def _matches(pattern: str) -> Callable[[str], bool]:
    match = re.compile(in_python(pattern)).fullmatch
    return lambda text: match(text) is not None
