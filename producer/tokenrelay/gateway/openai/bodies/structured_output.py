"""What an answer must match, as OpenAI's clients and vLLM's ask for it, as our option `response_format`.

OpenAI's `response_format` (chat completions) and `text.format` (responses), vLLM's `structured_outputs`, and our own
shape. Submit checks schemas, patterns and grammars.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Final

from pydantic import BaseModel, BeforeValidator, ConfigDict, WithJsonSchema

from tokenrelay.gateway.http.problems import refuse
from tokenrelay.gateway.openai.bodies.coercion import flag
from tokenrelay.gateway.openai.bodies.no_op_values import is_empty
from tokenrelay.shared.response_format import schema_format

Format = dict[str, Any]
_MOST_NAME_CHARS: Final = 64
_OUR_TYPES: Final = ("regex", "choice", "lark")
_STRUCTURED_OUTPUTS: Final = ("json", "regex", "choice", "grammar", "json_object")
_UNSUPPORTED: Final = "isn't supported; types are text, json_object, json_schema, regex, choice and lark"


def read_response_format(given: Any) -> Format | None:
    """Chat completions' `response_format`, or ours. Raises Problem 400."""
    if is_empty(given) or given == "text":
        return None
    if not isinstance(given, dict):
        refuse("response_format", "must be an object with type")
    if given.get("type") == "json_schema" and "value" not in given:
        return _named_schema(given.get("json_schema"), "response_format.json_schema")
    return _by_type(given, "response_format")


@dataclass(frozen=True, slots=True)
class NamedFormat:
    """Responses' format, which a response shows with the name that it was sent with."""

    option: Format
    name: str = ""


def read_text(given: Any) -> NamedFormat | None:
    """Responses' `text`; its `verbosity` is a hint. Raises Problem 400."""
    if is_empty(given):
        return None
    if not isinstance(given, dict):
        refuse("text", "must be an object with format")
    form = given.get("format")
    if is_empty(form) or form == "text":
        return None
    if not isinstance(form, dict):
        refuse("text.format", "must be an object with type")
    if form.get("type") == "json_schema":
        return NamedFormat(_named_schema(form, "text.format"), _name(form.get("name")))
    option = _by_type(form, "text.format")
    return None if option is None else NamedFormat(option)


def _name(given: Any) -> str:
    if given is not None and (not isinstance(given, str) or len(given) > _MOST_NAME_CHARS):
        refuse("text.format.name", f"must be text of at most {_MOST_NAME_CHARS} characters")
    return given or ""


def read_structured_outputs(given: Any) -> Format | None:
    """vLLM's `structured_outputs`. Raises Problem 400."""
    if is_empty(given):
        return None
    if not isinstance(given, dict):
        refuse("structured_outputs", f"must be an object with one of {', '.join(_STRUCTURED_OUTPUTS)}")
    # An empty schema, pattern or list is no default: clients leave what they don't ask for null.
    asked = {name: value for name, value in given.items() if value is not None and value is not False}
    for name in tuple(asked):
        if name not in _STRUCTURED_OUTPUTS and is_empty(asked[name]):
            del asked[name]
        elif name not in _STRUCTURED_OUTPUTS:
            refuse(f"structured_outputs.{name}", "isn't supported; leave it out", "unsupported_parameter")
    if len(asked) > 1:
        refuse("structured_outputs", f"asks for {' and '.join(asked)}; give one of them")
    for name, value in asked.items():
        if name == "json":
            return {"type": "json_schema", "value": value} if isinstance(value, str) else schema_format(value)
        if name == "json_object":
            return {"type": "json_object"}
        return {"type": "lark" if name == "grammar" else name, "value": value}
    return None


def _by_type(given: Format, path: str) -> Format | None:
    """A format whose type says all, or one of our own."""
    kind = given.get("type")
    if kind == "text":
        return None
    if kind == "json_object":
        for name in ("schema", "json_schema", "value"):
            if not is_empty(given.get(name)):
                refuse(f"{path}.{name}", "isn't a field of json_object; give type json_schema", "unsupported_parameter")
        return {"type": kind}
    if kind in _OUR_TYPES or (kind == "json_schema" and "value" in given):
        return {name: flag(value) if name == "strict" else value for name, value in given.items() if value is not None}
    refuse(f"{path}.type", _UNSUPPORTED, "unsupported_parameter")


def _named_schema(given: Any, path: str) -> Format:
    """OpenAI's schema, whose name isn't needed. Without `strict` what can't be enforced is ignored, as theirs."""
    if not isinstance(given, dict) or not isinstance(given.get("schema"), dict):
        refuse(f"{path}.schema", "must be a JSON schema: an object")
    strict = flag(given.get("strict"))
    if strict is not None and not isinstance(strict, bool):
        refuse(f"{path}.strict", "must be true or false")
    return schema_format(given["schema"], strict=bool(strict))


_SCHEMA: Final = {"anyOf": [{"type": "object", "additionalProperties": True}, {"type": "null"}]}


class FormatFields(BaseModel):
    """Of every endpoint."""

    model_config = ConfigDict(strict=True, use_attribute_docstrings=True)
    formats: ClassVar[dict[str, str]] = {
        "response_format": "response_format",
        "structured_outputs": "structured_outputs",
    }
    """Fields that say what the answer must match → the path that errors name."""

    response_format: Annotated[Any, BeforeValidator(read_response_format), WithJsonSchema(_SCHEMA)] = None
    """What the answer must match: `{"type": "json_object"}`, `{"type": "json_schema", "json_schema": {"schema": …}}`;
    as an extension also `{"type": "regex" | "choice" | "lark", "value": …}`."""
    structured_outputs: Annotated[Any, BeforeValidator(read_structured_outputs), WithJsonSchema(_SCHEMA)] = None
    """Extension, vLLM's: one of `json`, `regex`, `choice`, `grammar` (Lark) and `json_object`."""

    @property
    def answer_format(self) -> tuple[str, Format | None]:
        """The path of the field that says what the answer must match, and the option. Raises Problem 400."""
        given = {name: value for name in self.formats if (value := getattr(self, name)) is not None}
        if len(given) > 1:
            first, second, *_ = given
            refuse(first, f"differs from {second}; give one of them")
        for name, value in given.items():
            return self.formats[name], value.option if isinstance(value, NamedFormat) else value
        return "response_format", None
