"""The generation options as command-line options, generated from the schema in tokenrelay.shared.options.

Only types are checked here. Submit checks bounds, so that error messages are the same everywhere.
"""

from __future__ import annotations

import functools
import inspect
import json
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, Union, cast, get_args, get_origin, get_type_hints

import typer

from tokenrelay.cli.client.formats import parameters, pop_format
from tokenrelay.shared.errors import RequestError
from tokenrelay.shared.options import DEFAULTS, Options, json_schema

if TYPE_CHECKING:
    from collections.abc import Callable

_PANEL: Final = "Generation options"


def with_options(command: Callable[..., None]) -> Callable[..., None]:
    """Decorator that adds a command-line option to `command` for each field of Options, passed as `**options`.

    Options that aren't given are omitted; the producer fills in defaults.
    """

    @functools.wraps(command)
    def wrapper(**arguments: Any) -> None:
        given = {name: arguments.pop(name) for name in kinds}
        options = {name: _value(name, kinds[name], value) for name, value in given.items() if value not in (None, [])}
        wanted = pop_format(arguments)
        if wanted and "response_format" in options:
            raise RequestError(
                "response_format: give it or one of --schema, --regex and --choice", field="response_format"
            )
        command(**arguments, **options, **({"response_format": wanted} if wanted else {}))

    kinds, described = _kinds(), json_schema()["properties"]
    signature = inspect.signature(command, eval_str=True)
    own = [item for item in signature.parameters.values() if item.kind is not inspect.Parameter.VAR_KEYWORD]
    generated = [_parameter(name, kind, described[name].get("description", "")) for name, kind in kinds.items()]
    cast("Any", wrapper).__signature__ = signature.replace(parameters=[*own, *generated, *parameters()])
    return wrapper


def _kinds() -> dict[str, Any]:
    """Each field's type, without bounds and without None."""
    return {name: _plain(hint) for name, hint in get_type_hints(Options).items()}


def _plain(hint: Any) -> Any:
    if get_origin(hint) in (Union, UnionType):
        kinds = [kind for kind in get_args(hint) if kind is not NoneType]
        return kinds[0] if len(kinds) == 1 else Union[tuple(kinds)]  # noqa: UP007 - made of a list
    return hint


def _parameter(name: str, kind: Any, text: str) -> inspect.Parameter:
    default = cast("dict[str, Any]", DEFAULTS)[name]
    shown = text if default in (None, [], {}, False) else f"{text} (default: {default})"
    flag = f"--{name.replace('_', '-')}"
    annotation: Any = str
    option = typer.Option(flag, help=shown, show_default=False, metavar=_metavar(kind), rich_help_panel=_PANEL)
    if kind is bool or get_origin(kind) is Literal:
        option = typer.Option(flag, help=shown, show_default=False, rich_help_panel=_PANEL)
        annotation = kind
    elif kind in (int, float):
        annotation = kind
    elif kind in (list[str], list[int]):
        annotation = kind
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[annotation | None, option],
    )


def _metavar(kind: Any) -> str | None:
    return {int: "N", float: "X", str: "TEXT", list[str]: "TEXT", list[int]: "N"}.get(kind, "JSON")


def _value(name: str, kind: Any, given: Any) -> Any:
    """A command-line value in the schema's type. Raises RequestError for invalid JSON."""
    if kind in (int, float, bool, str, list[str], list[int]) or get_origin(kind) is Literal:
        return given
    try:
        return json.loads(given)
    except ValueError as error:
        if get_origin(kind) in (Union, UnionType):  # a word, or an object
            return given
        raise RequestError(f"{name}: isn't JSON ({error})", field=name) from None
