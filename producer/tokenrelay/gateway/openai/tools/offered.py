"""The tools that a body offers, and its choice of them. Submit checks their names, schemas and number."""

from __future__ import annotations

from typing import Annotated, Any, Final

from pydantic import BaseModel, BeforeValidator, ConfigDict, WithJsonSchema

from tokenrelay.gateway.http.problems import refuse

_NONE: Final[tuple[Any, ...]] = (None, "", [], {})


def read_tools(given: Any) -> list[dict[str, Any]]:
    """Raises Problem 400 for what isn't a list of functions."""
    if given in _NONE:
        return []
    if not isinstance(given, list):
        refuse("tools", "must be a list of tools")
    for number, tool in enumerate(given):
        if not isinstance(tool, dict):
            refuse(f"tools.{number}", "must be an object with type and function")
        kind = tool.get("type", "function")
        if kind != "function":
            refuse(
                f"tools.{number}.type", f"tools of type {ascii(kind)[:60]} aren't supported", "unsupported_parameter"
            )
    return given


def read_choice(given: Any) -> Any:
    """Raises Problem 400 for a choice that isn't a word or a function."""
    if given in _NONE:
        return None
    kind = given.get("type", "function") if isinstance(given, dict) else "function"
    if kind in ("auto", "none", "required"):
        return kind
    if kind != "function":
        refuse("tool_choice.type", f"choices of type {ascii(kind)[:60]} aren't supported", "unsupported_parameter")
    return given


_TOOLS: Final = {"type": "array", "items": {"type": "object"}, "maxItems": 128}
_CHOICE: Final = {"anyOf": [{"enum": ["auto", "none", "required"]}, {"type": "object"}]}


class ToolFields(BaseModel):
    """Of the endpoints whose answers call tools."""

    model_config = ConfigDict(strict=True, use_attribute_docstrings=True)

    tools: Annotated[list[dict[str, Any]], BeforeValidator(read_tools), WithJsonSchema(_TOOLS)] = []
    """Functions that the answer may call: `{"type": "function", "function": {"name", "description", "parameters",
    "strict"}}`."""
    tool_choice: Annotated[Any, BeforeValidator(read_choice), WithJsonSchema(_CHOICE)] = None
    """Whether it calls any: auto, none, required, or one function by its name."""

    parallel_tool_calls: bool | None = None
    """Whether it may call several at once."""

    @property
    def tool_options(self) -> dict[str, Any]:
        """The request options. Raises Problem 400 for a choice without tools."""
        if not self.tools:
            if self.tool_choice not in (None, "auto", "none"):
                refuse("tool_choice", "needs tools to choose from")
            return {}
        given = {"tool_choice": self.tool_choice, "parallel_tool_calls": self.parallel_tool_calls}
        return {"tools": self.tools, **{name: value for name, value in given.items() if value is not None}}
