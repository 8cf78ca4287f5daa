"""What `benchmarks.grammars` compiles: grammars as applications ask for them, and hostile ones."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

Case = tuple[str, str]
"""The kind (json_schema, regex, choice, lark) and its text; a choice's text is a JSON array."""


def _object(properties: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
        **more,
    }


_WEATHER: Final = _object(
    {
        "city": {"type": "string", "maxLength": 40},
        "degrees": {"type": "integer", "minimum": -40, "maximum": 50},
        "sky": {"enum": ["clear", "rain", "snow"]},
    }
)
_PERSON: Final = _object(
    {
        "name": {"type": "string"},
        "born": {"type": "string", "format": "date"},
        "email": {"type": "string", "format": "email"},
        "tags": {"type": "array", "items": {"type": "string", "pattern": "^[a-z]{2,12}$"}, "maxItems": 5},
        "address": _object({"street": {"type": "string"}, "code": {"type": "string", "pattern": "^[0-9]{5}$"}}),
    }
)
_TREE: Final = {
    "$defs": {
        "node": _object({"name": {"type": "string"}, "of": {"type": "array", "items": {"$ref": "#/$defs/node"}}})
    },
    "$ref": "#/$defs/node",
}
_UNION: Final = {
    "anyOf": [
        _object({"tool": {"const": name}, "n": {"type": "number"}, "at": {"type": ["string", "null"]}})
        for name in ("search", "open", "calculate", "answer")
    ]
}
_WIDE: Final = _object({f"field_{n}": {"type": ["string", "number", "boolean", "null"][n % 4]} for n in range(60)})
_CODES: Final = _object({"code": {"enum": [f"item-{n:05d}" for n in range(2000)]}})
_ARITHMETIC: Final = 'start: sum\nsum: product (("+" | "-") product)*\nproduct: atom (("*" | "/") atom)*\n' + (
    'atom: NUMBER | "(" sum ")"\nNUMBER: /[0-9]+/\n'
)

USUAL: Final[dict[str, Case]] = {
    **{
        name: ("json_schema", json.dumps(schema))
        for name, schema in {
            "any object": {"type": "object"},
            "weather": _WEATHER,
            "person": _PERSON,
            "tree": _TREE,
            "union of 4": _UNION,
            "60 fields": _WIDE,
            "2,000 codes": _CODES,
        }.items()
    },
    "date": ("regex", r"\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])"),
    "sentence": ("regex", r"[A-Z][a-z]+( [a-z]+){2,12}\."),
    "1,000 choices": ("choice", json.dumps([f"answer number {n}" for n in range(1000)])),
    "arithmetic": ("lark", _ARITHMETIC),
}


def _nested(depth: int) -> str:
    return '{"properties":{"a":' * depth + "{}" + "}}" * depth


def _doubling(depth: int) -> str:
    """Each definition names the next twice: 2^depth paths."""
    defs: dict[str, Any] = {
        f"d{n}": {"allOf": [{"$ref": f"#/$defs/d{n + 1}"}, {"$ref": f"#/$defs/d{n + 1}"}]} for n in range(depth)
    }
    return json.dumps({"$defs": {**defs, f"d{depth}": {"type": "string"}}, "$ref": "#/$defs/d0"})


def _choices_of_each(count: int) -> str:
    """An allOf of `count` unions of two: 2^count combinations."""
    return json.dumps(
        {"allOf": [{"anyOf": [{"required": [f"a{n}"]}, {"required": [f"b{n}"]}]} for n in range(count)]}
        | {"properties": {f"{side}{n}": {"type": "string"} for n in range(count) for side in "ab"}}
    )


HOSTILE: Final[dict[str, Callable[[], Case]]] = {
    "schema of 64 levels": lambda: ("json_schema", _nested(64)),
    "schema of 100,000 levels": lambda: ("json_schema", _nested(100_000)),
    "enum of 256 KB": lambda: ("json_schema", json.dumps({"enum": [f"{n * 7919:012d}" for n in range(17_000)]})),
    "enum of 10 MB": lambda: ("json_schema", json.dumps({"enum": [f"{n * 7919:012d}" for n in range(620_000)]})),
    "256 KB of properties": lambda: (
        "json_schema",
        json.dumps({"type": "object", "properties": {f"p{n}": {"type": "string"} for n in range(8_000)}}),
    ),
    "1,000 optional properties": lambda: (
        "json_schema",
        json.dumps({"properties": {f"p{n}": {"type": "string"} for n in range(1_000)}, "additionalProperties": False}),
    ),
    "$ref to itself": lambda: ("json_schema", '{"$ref":"#"}'),
    "$ref loop of three": lambda: (
        "json_schema",
        json.dumps({"$ref": "#/$defs/a", "$defs": {x: {"$ref": f"#/$defs/{y}"} for x, y in ("ab", "bc", "ca")}}),
    ),
    "allOf of itself": lambda: ("json_schema", '{"allOf":[{"$ref":"#"},{"$ref":"#"}]}'),
    "2^30 paths of allOf": lambda: ("json_schema", _doubling(30)),
    "2^24 combinations of anyOf": lambda: ("json_schema", _choices_of_each(24)),
    "100,000 items": lambda: ("json_schema", '{"type":"array","items":{"type":"string"},"minItems":100000}'),
    "10^6 properties": lambda: ("json_schema", '{"type":"object","minProperties":1000000}'),
    "10^9 characters": lambda: ("json_schema", '{"type":"string","minLength":10,"maxLength":1000000000}'),
    "multipleOf of 7 primes": lambda: (
        "json_schema",
        json.dumps({"allOf": [{"type": "integer", "multipleOf": prime} for prime in (3, 7, 11, 13, 17, 19, 23)]}),
    ),
    "(a|b)*a(a|b){30}": lambda: ("regex", "(a|b)*a(a|b){30}"),
    "(.{0,1000}){1000}": lambda: ("regex", "(.{0,1000}){1000}"),
    "((a{1,100}){1,100}){1,100}": lambda: ("regex", "((a{1,100}){1,100}){1,100}"),
    "1,000 patterns at once": lambda: (
        "json_schema",
        json.dumps({"type": "string", "allOf": [{"pattern": f"a.{{{n}}}b"} for n in range(1_000)]}),
    ),
    "letters of all scripts, 1,000 times": lambda: ("regex", r"\p{L}{1000}"),
    "(x+x+)+y": lambda: ("regex", "(x+x+)+y"),
    "20 times .*": lambda: ("regex", ".*x" * 20),
    "parentheses 50,000 deep": lambda: ("regex", "(" * 50_000 + "a" + ")" * 50_000),
    "intersection of unions": lambda: (
        "json_schema",
        json.dumps({"type": "string", "allOf": [{"pattern": f"(a|b)*{c}(a|b){{{n}}}"} for n in (9, 11) for c in "ab"]}),
    ),
    "ambiguous: s s s": lambda: ("lark", 'start: start start start | "a" | ""'),
    "left recursion": lambda: ("lark", 'start: start "a" | start "b" |'),
    "rules of 256 KB": lambda: (
        "lark",
        "start: r0\n" + "\n".join(f'r{n}: "a" r{n + 1} | "b" r{n + 1}' for n in range(8_000)) + '\nr8000: "c"\n',
    ),
    "undefined rule": lambda: ("lark", "start: nothing"),
}
