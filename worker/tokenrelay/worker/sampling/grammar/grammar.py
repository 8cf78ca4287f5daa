"""What a request's answer must match."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from tokenrelay.shared.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Mapping

Kind = Literal["json_object", "json_schema", "regex", "choice", "lark", "calls"]


class GrammarError(RequestError):
    """The grammar can't be used: code `invalid_grammar`, with the compiler's reason."""

    def __init__(self, reason: str, field: str = "response_format") -> None:
        super().__init__(f"{field}: {reason}", field=field, code="invalid_grammar")
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Grammar:
    """The option `response_format`: its kind, and the schema, pattern, grammar or choices as text. Or the calls of
    tools that an answer may have: see `calls`."""

    kind: Kind
    text: str = ""
    """A choice's is a JSON array of strings; a JSON object has none."""
    strict: bool = True
    """Whether a schema's keywords that the compiler doesn't know make it invalid; otherwise they have no effect."""

    @property
    def field(self) -> str:
        """The option that asks for it."""
        return "tools" if self.kind == "calls" else "response_format"

    @classmethod
    def of(cls, response_format: Mapping[str, Any]) -> Grammar:
        """The grammar of a validated `response_format`."""
        value = response_format.get("value") or ""
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        return cls(response_format["type"], text, response_format.get("strict", True))
