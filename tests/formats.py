"""Formats of answers for tests, each with the check of an answer that ended complete.

Most of their tokens are free to choose, so that an answer at a high temperature holds some bits a token.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_CITY: Final = "[α-ωа-я一-龥]{4,8}"
SCHEMA: Final[dict[str, Any]] = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "pattern": f"^{_CITY}$"},
        "notes": {
            "type": "array",
            "items": {"type": "string", "minLength": 20, "maxLength": 120},
            "minItems": 1,
            "maxItems": 2,
        },
        "degrees": {"type": "integer", "minimum": -40, "maximum": 50},
    },
    "required": ["city", "notes", "degrees"],
    "additionalProperties": False,
}
PATTERN: Final = r"[a-zà-ž]{20,60}( [ぁ-ん一-龥]{2,4}){2,4}\."
LARK: Final = 'start: "[" item (", " item)* "]"\nitem: /[a-zü]{6,}/ | start'
_LETTERS: Final = ("abcdefghij", "klmnopqrst", "uvwxyzABCD")
CHOICES: Final = tuple("".join(letters) for letters in product(*_LETTERS))


@dataclass(frozen=True, slots=True)
class AnswerFormat:
    """A `response_format`, and whether a complete answer matches it."""

    option: Any
    accepts: Callable[[str], bool]
    """May raise ValueError."""

    def matches(self, text: str) -> bool:
        """Whether a complete answer is one in this format."""
        try:
            return self.accepts(text)
        except ValueError:
            return False


def fits_schema(text: str) -> bool:
    """Whether it's an answer by SCHEMA."""
    found = json.loads(text)
    city, notes, degrees = found["city"], found["notes"], found["degrees"]
    return (
        list(found) == ["city", "notes", "degrees"]
        and bool(re.fullmatch(_CITY, city))
        and 1 <= len(notes) <= 2
        and all(20 <= len(note) <= 120 for note in notes)
        and -40 <= degrees <= 50
    )


def nests(text: str) -> bool:
    """Whether it's an answer by LARK: brackets in pairs, with words and such answers between them."""
    while (shorter := re.sub(r"\[(?:[a-zü]{6,}|\(\))(?:, (?:[a-zü]{6,}|\(\)))*\]", "()", text)) != text:
        text = shorter
    return text == "()"


FORMATS: Final[dict[str, AnswerFormat]] = {
    "json_schema": AnswerFormat({"type": "json_schema", "value": json.dumps(SCHEMA)}, fits_schema),
    "json_object": AnswerFormat({"type": "json_object"}, lambda text: isinstance(json.loads(text), dict)),
    "regex": AnswerFormat({"type": "regex", "value": PATTERN}, lambda text: bool(re.fullmatch(PATTERN, text))),
    "choice": AnswerFormat({"type": "choice", "value": list(CHOICES)}, lambda text: text in CHOICES),
    "lark": AnswerFormat({"type": "lark", "value": LARK}, nests),
}


def format_of(options: Mapping[str, Any]) -> AnswerFormat | None:
    """The format that a request asks for, of these."""
    wanted = options.get("response_format")
    return None if wanted is None else FORMATS[wanted["type"]]
