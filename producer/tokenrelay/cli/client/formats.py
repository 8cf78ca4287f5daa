"""`--schema`, `--regex` and `--choice`: the option response_format for people."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from tokenrelay.shared.errors import RequestError

_PANEL: Final = "Generation options"
_HELP: Final[dict[str, tuple[Any, str | None, str]]] = {
    "schema": (Path, "FILE", "The answer is JSON that fits the JSON schema in this file; - is standard input."),
    "regex": (str, "PATTERN", "The answer as a whole matches this pattern."),
    "choice": (list[str], "TEXT", "The answer is this text, or one of several given so."),
}


def parameters() -> list[inspect.Parameter]:
    """Of a command."""
    found = []
    for name, (kind, metavar, text) in _HELP.items():
        option = typer.Option(f"--{name}", help=text, show_default=False, metavar=metavar, rich_help_panel=_PANEL)
        annotation: Any = Annotated[kind | None, option]
        found.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation))
    return found


def pop_format(arguments: dict[str, Any]) -> dict[str, Any] | None:
    """Take the three out of a command's arguments. Raises RequestError for an unreadable file, or two of them."""
    given = {name: value for name in _HELP if (value := arguments.pop(name)) not in (None, [])}
    if len(given) > 1:
        flags = " and ".join(f"--{name}" for name in given)
        raise RequestError(f"{flags}: give one of them", field="response_format")
    for name, value in given.items():
        if name != "schema":
            return {"type": name, "value": value}
        if str(value) == arguments.get("prompt") == "-":
            raise RequestError("schema: the prompt is read from standard input; give a file", field="response_format")
        try:
            raw = sys.stdin.buffer.read() if str(value) == "-" else value.read_bytes()
            return {"type": "json_schema", "value": raw.decode("utf-8-sig")}
        except (OSError, UnicodeDecodeError) as error:
            message = f"schema: {value} can't be read ({error}); give a file, or - for standard input"
            raise RequestError(message, field="response_format") from None
    return None
