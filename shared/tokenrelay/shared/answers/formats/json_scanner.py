"""JSON as it comes in, one character at a time: what can still become a value, and where it is complete (RFC 8259)."""

from __future__ import annotations

import re
from enum import Enum, auto
from typing import Final

_BLANK: Final = " \t\n\r"
_LITERAL: Final = re.compile(r"true|false|null|-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_IN_LITERAL: Final = frozenset("+-.0123456789abcdefghijklmnopqrstuvwxyzE")
_ESCAPED: Final = frozenset('"\\/bfnrt')
_HEX: Final = frozenset("0123456789abcdefABCDEF")
_CLOSES: Final = {"{": "}", "[": "]"}


class At(Enum):
    """What may follow."""

    VALUE = auto()
    FIRST_VALUE = auto()
    KEY = auto()
    FIRST_KEY = auto()
    COLON = auto()
    STRING = auto()
    ESCAPE = auto()
    HEX = auto()
    LITERAL = auto()
    AFTER = auto()


class JsonScanner:
    """Follows one value: an object or an array.

    After `failed` or `complete` no character may be pushed; the one that fails isn't a part of the value.
    """

    def __init__(self) -> None:
        self.at = At.VALUE
        self.failed = False
        self.complete = False
        self._open: list[str] = []  # brackets
        self._is_key = False
        self._literal: list[str] = []
        self._digits = 0

    @property
    def depth(self) -> int:
        """How many objects and arrays are open."""
        return len(self._open)

    @property
    def in_string(self) -> bool:
        return self.at in (At.STRING, At.ESCAPE, At.HEX)

    def push(self, char: str) -> None:
        if self.at is At.LITERAL and char not in _IN_LITERAL:
            self.at = At.AFTER
            self.failed = _LITERAL.fullmatch("".join(self._literal)) is None
        if not self.failed:
            self.failed = not self._accepts(char)

    def _accepts(self, char: str) -> bool:
        match self.at:
            case At.STRING:
                return self._string(char)
            case At.ESCAPE:
                self.at, self._digits = (At.HEX, 0) if char == "u" else (At.STRING, 0)
                return char == "u" or char in _ESCAPED
            case At.HEX:
                self._digits += 1
                self.at = At.STRING if self._digits == 4 else At.HEX
                return char in _HEX
            case At.LITERAL:
                self._literal.append(char)
                return True
        return char in _BLANK or self._structure(char)

    def _string(self, char: str) -> bool:
        if char == '"':
            self.at = At.COLON if self._is_key else At.AFTER
        elif char == "\\":
            self.at = At.ESCAPE
        return char >= " "

    def _structure(self, char: str) -> bool:
        match self.at, char:
            case ((At.VALUE | At.FIRST_VALUE), ("{" | "[")):
                self._open.append(char)
                self.at = At.FIRST_KEY if char == "{" else At.FIRST_VALUE
            case ((At.VALUE | At.FIRST_VALUE | At.KEY | At.FIRST_KEY), '"') if self._open:
                self._is_key, self.at = self.at in (At.KEY, At.FIRST_KEY), At.STRING
            case ((At.VALUE | At.FIRST_VALUE), _) if self._open and char in _IN_LITERAL and char != "]":
                self._literal, self.at = [char], At.LITERAL
            case At.COLON, ":":
                self.at = At.VALUE
            case At.AFTER, ",":
                self.at = At.KEY if self._open[-1] == "{" else At.VALUE
            case ((At.AFTER | At.FIRST_KEY | At.FIRST_VALUE), ("}" | "]")) if char == _CLOSES[self._open[-1]]:
                self._open.pop()
                self.at, self.complete = At.AFTER, not self._open
            case _:
                return False
        return True
