"""The option `response_format`: its shape, its bounds, and what can be said of a grammar without compiling it.

Whether a grammar can be compiled is the worker's to say, which has the library for it.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, NotRequired, cast

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    PlainValidator,
    ValidationInfo,
    WithJsonSchema,
)
from pydantic_core import PydanticCustomError
from typing_extensions import TypedDict

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_BYTES: Final = 262_144
MAX_DEPTH: Final = 64
MAX_CHOICES: Final = 1_024
STORED: Final[dict[str, object]] = {}
"""The context of a validation of what is in Redis."""
_DATA: Final = frozenset({"const", "default", "enum", "examples"})
"""Keywords of a schema whose values are data, not schemas."""


def _text_or_texts(value: Any) -> Any:
    """A format's value, with one error where neither fits. Raises PydanticCustomError."""
    texts = value if isinstance(value, list) else [value]
    if not all(isinstance(each, str) for each in texts):
        raise _refusal("must be text; for type choice a list of texts, for json_schema also the schema as an object")
    return value


class Format(TypedDict):
    """What the answer must match."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)  # type: ignore[misc]

    type: Literal["json_object", "json_schema", "regex", "choice", "lark"]
    value: NotRequired[Annotated[str | list[str] | dict[str, Any], PlainValidator(_text_or_texts)]]
    """The schema as an object or as JSON text, as which it is stored, the pattern, the grammar, or the list of choices;
    a JSON object has none."""
    strict: NotRequired[bool]
    """Whether a schema's keywords that the worker can't enforce are refused (the default) or ignored."""


def schema_format(schema: object, *, strict: bool = True) -> dict[str, Any]:
    """The format of answers that fit a JSON schema, given as an object."""
    return {"type": "json_schema", "value": json.dumps(schema, ensure_ascii=False), "strict": strict}


def _as_format(value: Any) -> Any:
    """A pydantic model as the format of its JSON schema, and a schema given as an object as JSON text. Raises
    PydanticCustomError."""
    if isinstance(value, type) and issubclass(value, BaseModel):
        return schema_format(_closed(value.model_json_schema()))
    if not isinstance(value, dict):
        raise _refusal("must be an object with type and value or, in Python, a pydantic model's class")
    if value.get("type") == "json_schema" and isinstance(value.get("value"), dict | bool):
        return {**value, "value": schema_text(value["value"])}
    return value


def schema_text(schema: dict[Any, Any] | bool) -> str:
    """The schema as JSON, its keys in their order."""
    try:
        return json.dumps(schema, ensure_ascii=False)
    except RecursionError:
        raise _too_deep() from None
    except (TypeError, ValueError) as error:
        raise _refusal(f"holds a schema that isn't JSON ({error})") from None


def _closed(schema: Any) -> Any:
    """The schema of a model without room for other keys, where it doesn't say so itself: a model ignores them."""
    if isinstance(schema, list):
        return [_closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    found = {name: value if name in _DATA else _closed(value) for name, value in schema.items()}
    return {**found, "additionalProperties": found.get("additionalProperties", False)} if _is_object(found) else found


def _is_object(schema: dict[str, Any]) -> bool:
    return schema.get("type") == "object" and isinstance(schema.get("properties"), dict)


def _checked(value: Format, info: ValidationInfo) -> Format:
    """The format with `strict` filled in. Raises PydanticCustomError.

    A `STORED` schema isn't parsed: its compiler does that, in a process of its own. Here it would keep all other
    threads of a worker waiting for up to 10 ms.
    """
    kind, given = value["type"], value.get("value")
    if kind == "json_object":
        if given is not None:
            raise _refusal("has a value; type json_object takes none")
        return cast("Format", {"type": kind, "strict": value.get("strict", True)})
    if kind == "choice":
        _check_choices(given)
    elif not isinstance(given, str) or not given.strip():
        what = {
            "json_schema": "the schema as an object or as JSON text",
            "regex": "the pattern",
            "lark": "the grammar",
        }[kind]
        raise _refusal(f"has no text as its value; type {kind} takes {what}")
    _check_size(given)
    if kind == "json_schema" and info.context is not STORED:
        check_schema(cast("str", given))
    return cast("Format", {"type": kind, "value": given, "strict": value.get("strict", True)})


def _check_choices(given: object) -> None:
    if isinstance(given, list) and len(given) > MAX_CHOICES:
        raise PydanticCustomError(
            "too_many",
            "has too many choices: {size}; at most {le} are allowed",
            {"size": len(given), "le": MAX_CHOICES},
        )
    if not isinstance(given, list) or not given:
        raise _refusal(f"has no list as its value; type choice takes 1 to {MAX_CHOICES} texts")
    if not all(given):
        raise _refusal("has an empty choice; each has at least one character")


def _check_size(given: object) -> None:
    try:
        size = len(given.encode() if isinstance(given, str) else json.dumps(given, ensure_ascii=False).encode())
    except UnicodeEncodeError:
        raise _refusal("holds a lone surrogate; text must be valid Unicode") from None
    if size > MAX_BYTES:
        raise PydanticCustomError(
            "too_large", "is {size} bytes; at most {le} are allowed", {"size": size, "le": MAX_BYTES}
        )


def check_schema(text: str) -> None:
    """Raises PydanticCustomError for what can't be a JSON schema, and for one that is too deep or refers elsewhere."""
    try:
        schema = json.loads(text)
    except ValueError as error:
        raise _refusal(f"holds a schema that isn't JSON ({error})") from None
    except RecursionError:
        raise _too_deep() from None
    if not isinstance(schema, dict | bool):
        raise _refusal("holds a schema that isn't a JSON object")
    remote, bases = "", False
    for level, node in _subschemas(schema):
        if level > MAX_DEPTH:
            raise _too_deep()
        if isinstance(node, dict):
            reference = node.get("$ref")
            if isinstance(reference, str) and not reference.startswith("#"):
                remote = remote or reference
            bases |= isinstance(node.get("$id"), str)
    if remote and not bases:
        raise _refusal(
            f"refers to another document, {ascii(remote)[:80]}; only references within the schema are followed"
        )


def _subschemas(schema: object) -> Iterator[tuple[int, object]]:
    """Each object and array of a schema with its level, from 1; the values of data keywords aside."""
    layer, level = [schema], 0
    while layer := [each for each in layer if isinstance(each, dict | list)]:
        level += 1
        for node in layer:
            yield level, node
        layer = [child for node in layer for child in _children(node)]


def _children(node: object) -> Iterator[object]:
    if isinstance(node, dict):
        yield from (child for name, child in node.items() if name not in _DATA)
    else:
        yield from cast("list[object]", node)


def _too_deep() -> PydanticCustomError:
    return PydanticCustomError("too_deep", "nests more than {le} levels", {"le": MAX_DEPTH})


def _refusal(why: str) -> PydanticCustomError:
    return PydanticCustomError("response_format", "{why}", {"why": why})


if TYPE_CHECKING:
    ResponseFormat = Format | type[BaseModel]
else:
    ResponseFormat = Annotated[
        Format,
        BeforeValidator(_as_format),
        AfterValidator(_checked),
        WithJsonSchema(
            {
                "type": "object",
                "description": "What the answer must match.",
                "properties": {
                    "type": {"enum": ["json_object", "json_schema", "regex", "choice", "lark"]},
                    "value": {
                        "anyOf": [
                            {"type": "string"},
                            {"type": "array", "items": {"type": "string"}},
                            {"type": "object", "additionalProperties": True},
                            {"type": "boolean"},
                        ]
                    },
                    "strict": {"type": "boolean"},
                },
                "required": ["type"],
                "additionalProperties": False,
            }
        ),
    ]
