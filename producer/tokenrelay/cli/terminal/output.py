"""Output of the commands: model text as is, entries as JSON lines, errors as one line on stderr with an exit code.

Model text is written as bytes, without markup, and coloured by its log-probabilities alone (confidence.py). On a
terminal its control characters are replaced by visible symbols, so that model output can't move the cursor or set the
window's title.
"""

from __future__ import annotations

import io
import json
import os
import sys
import warnings
from contextlib import contextmanager
from dataclasses import asdict
from enum import IntEnum
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.color import ColorSystem
from rich.console import Console

from tokenrelay.shared.errors import (
    GenerationError,
    QueueFull,
    RedisUnusable,
    RequestError,
    RequestNotFound,
    SettingsError,
    StreamExpired,
    TokenRelayError,
)
from tokenrelay.shared.settings import refuse_unknown
from tokenrelay.shared.wire.entries import EntryId, Token

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.style import Style

    from tokenrelay.shared.wire.entries import Entry


class Exit(IntEnum):
    """The exit codes of all commands."""

    ANSWERED = 0
    NO_ANSWER = 1
    BAD_INPUT = 2
    REDIS_UNUSABLE = 3
    NOT_FOUND = 4
    QUEUE_FULL = 5
    INTERRUPTED = 130
    PIPE_CLOSED = 141


EXIT_CODES: Final = (
    "Exit codes: 0 answered or done; 1 the generation failed, expired, was cancelled, or was cut off before it matched "
    "its format; 2 bad input or setting; "
    "3 Redis is unusable; 4 no such request; 5 the queue is full; 130 Ctrl-C; 141 broken pipe."
)
Json = Annotated[bool, typer.Option("--json", help="Print JSON, one object per line.")]
_VISIBLE: Final = (
    {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"}
    | {0x7F: 0x2421}
    | {code: 0xFFFD for code in range(0x80, 0xA0)}
)


def write_text(text: str, style: Style | None = None) -> None:
    """Write model text to stdout and flush. A style is for terminals alone."""
    if sys.stdout.isatty():
        text = text.translate(_VISIBLE)
    if style:
        text = style.render(text, color_system=ColorSystem.STANDARD)
    sys.stdout.buffer.write(text.encode("utf-8", "surrogateescape"))
    sys.stdout.buffer.flush()


def write_line(text: str = "") -> None:
    write_text(text + "\n")


def write_json(value: dict[str, Any]) -> None:
    """Write one JSON object on one line. ASCII, so that it's valid in any locale."""
    write_line(json.dumps(value, default=str))


def entry_fields(entry: Entry) -> dict[str, Any]:
    """An entry as a JSON object: `kind`, then its fields."""
    fields = {name: str(EntryId(*value)) if name == "entry_id" else value for name, value in asdict(entry).items()}
    fields.pop("kind", None)
    if isinstance(entry, Token):
        logprobs = [each.as_json() for each in entry.logprobs] or None
        fields = {"entry_id": str(entry.entry_id), **fields, "logprobs": logprobs}
    return {"kind": entry.kind, **{name: value for name, value in fields.items() if value is not None}}


def visible(text: str) -> str:
    """The text on one line, with unprintable characters escaped."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)


def print_rich(draw: Callable[[Console], None]) -> None:
    """Write what `draw` prints: with colour on a terminal, as plain text into a pipe.

    Always UTF-8, as model text, whatever the locale.
    """
    written = io.StringIO()
    draw(Console(file=written, force_terminal=sys.stdout.isatty(), highlight=False, emoji=False, markup=False))
    lines = written.getvalue().splitlines()
    sys.stdout.buffer.write("".join(f"{line.rstrip()}\n" for line in lines).encode("utf-8", "backslashreplace"))
    sys.stdout.buffer.flush()


def write_message(text: str) -> None:
    """Write a line to stderr."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def add_command(app: typer.Typer, command: Callable[..., None], name: str | None = None) -> None:
    """Add the command to `app`; its errors become exit codes."""
    app.command(name, epilog=EXIT_CODES)(exit_on_error()(command))


@contextmanager
def exit_on_error() -> Iterator[None]:
    """Context manager that turns a command's errors into a line on stderr and an exit code, and prints warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.simplefilter("ignore", DeprecationWarning)  # libraries': not actionable for the user
        warnings.showwarning = lambda message, *_, **__: write_message(f"tokenrelay: {message}")
        try:
            refuse_unknown(os.environ)
            yield
        except TokenRelayError as error:
            write_message(f"tokenrelay: {error}")
            raise typer.Exit(exit_code(error)) from None
        except BrokenPipeError:
            # Python flushes stdout again at exit, which would fail again.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(Exit.PIPE_CLOSED) from None
        except KeyboardInterrupt:
            raise typer.Exit(Exit.INTERRUPTED) from None


def exit_code(error: TokenRelayError) -> Exit:
    match error:
        case GenerationError():
            return Exit.NO_ANSWER
        case RequestNotFound() | StreamExpired():
            return Exit.NOT_FOUND
        case RequestError() | SettingsError():
            return Exit.BAD_INPUT
        case RedisUnusable():
            return Exit.REDIS_UNUSABLE
        case QueueFull():
            return Exit.QUEUE_FULL
        case _:
            return Exit.NO_ANSWER
