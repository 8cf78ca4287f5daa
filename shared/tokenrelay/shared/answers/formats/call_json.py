"""One call as JSON: an object with `name`, and `arguments` or `parameters`."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Final

from tokenrelay.shared.answers.formats.json_scanner import At, JsonScanner

if TYPE_CHECKING:
    from tokenrelay.shared.answers.deltas import Deltas

NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
"""Names of tools: OpenAI's rule."""
_ARGUMENTS: Final = ("arguments", "parameters")


class OpenCall:
    """A call whose object is being read.

    It begins for readers once its name and the first character of its arguments are known. Up to then it may turn out
    to be no call: `failed` while not `begun`. From then on its arguments are what the model writes.
    """

    def __init__(self, deltas: Deltas, token: int) -> None:
        self._deltas, self._token = deltas, token
        self._scanner = JsonScanner()
        self._key: str | None = None  # of the value that is being read, at the object's own level
        self._raw: list[str] | None = None  # of the key or the value that is being read
        self._name: str | None = None
        self._arguments: list[str] | None = None  # not reported yet
        self._arguments_open = False
        self._invalid = False
        self.begun = False

    @property
    def failed(self) -> bool:
        return self._scanner.failed or self._invalid

    @property
    def complete(self) -> bool:
        return self._scanner.complete

    @property
    def broken(self) -> bool:
        """Whether its arguments have turned out not to be JSON."""
        return self.failed and self._arguments_open

    @property
    def in_string(self) -> bool:
        return self._scanner.in_string and not self.failed

    def push(self, text: str) -> int:
        """Read on, up to the object's end or to what can't be a part of it. Returns how many characters were read."""
        read = 0
        for char in text:
            if self.failed or self.complete:
                break
            self._read(char)
            read += not self.failed
            if not self.begun:
                self._begin()
        self._invalid = self._invalid or (self.complete and not self.begun)
        if self.begun and self._arguments:
            self._deltas.arguments("".join(self._arguments))
            self._arguments.clear()
        return read

    def _begin(self) -> None:
        if self._name is not None and self._arguments is not None and not self.failed:
            self.begun = True
            self._deltas.begin(self._name, self._token)

    def append(self, text: str) -> None:
        """Add to the arguments of a call that is `broken`."""
        self._deltas.arguments(text)

    def _read(self, char: str) -> None:
        scanner = self._scanner
        before, depth = scanner.at, scanner.depth
        scanner.push(char)
        if scanner.failed:
            return
        if self._raw is None:
            if depth == 1 and (scanner.at is At.STRING or before is At.VALUE) and scanner.at is not before:
                self._raw = []
                self._arguments_open = before is At.VALUE and char == "{" and self._awaits_arguments
                if self._arguments_open:
                    self._arguments = []
                self._add(char)
        elif depth == 1 and before is At.LITERAL and scanner.at is not At.LITERAL:
            self._value_ends()
        else:
            self._add(char)
            if scanner.at is At.COLON and scanner.depth == 1:
                self._key, self._raw = json.loads("".join(self._raw)), None
            elif scanner.at is At.AFTER and scanner.depth == 1:
                self._value_ends()

    def _add(self, char: str) -> None:
        if self._arguments_open and self._arguments is not None:
            self._arguments.append(char)
        elif self._raw is not None:
            self._raw.append(char)

    @property
    def _awaits_arguments(self) -> bool:
        return self._key in _ARGUMENTS and self._arguments is None

    def _value_ends(self) -> None:
        raw, self._raw = "".join(self._raw or ()), None
        if self._arguments_open:
            self._arguments_open = False
        elif self._key == "name" and self._name is None:
            self._name = _string(raw) or ""
            self._invalid = NAME.fullmatch(self._name) is None
        elif self._awaits_arguments:
            # Not an object: a text that holds one, or none at all.
            text = "" if raw == "null" else _string(raw)
            self._invalid, self._arguments = text is None, [text or ""]


def _string(raw: str) -> str | None:
    """The text that a JSON value is; None where it's another value, or no text that can be stored."""
    # Other values aren't decoded: Python limits their depth and their digits.
    text = json.loads(raw) if raw.startswith('"') else None
    return None if text is None or any("\ud800" <= char <= "\udfff" for char in text) else str(text)
