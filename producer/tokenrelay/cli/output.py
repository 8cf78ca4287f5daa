"""What the commands write: model text as it is, entries as JSON lines, errors as one line on stderr with an exit code.

Model text goes out as bytes, past every markup and colour. On a terminal its control characters are made visible: a
model may not move the cursor or set the window's title.
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
from typing import TYPE_CHECKING, Any, Final

import typer
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
    "Exit codes: 0 answered or done; 1 the generation failed, expired or was cancelled; 2 bad input or setting; "
    "3 Redis can't be used; 4 no such request; 5 the queue is full; 130 Ctrl-C; 141 the reader of our output left."
)
_VISIBLE: Final = (
    {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"}
    | {0x7F: 0x2421}
    | {code: 0xFFFD for code in range(0x80, 0xA0)}
)


def write_text(text: str) -> None:
    """Write model text to stdout at once."""
    if sys.stdout.isatty():
        text = text.translate(_VISIBLE)
    sys.stdout.buffer.write(text.encode("utf-8", "surrogateescape"))
    sys.stdout.buffer.flush()


def write_line(text: str = "") -> None:
    write_text(text + "\n")


def write_json(value: dict[str, Any]) -> None:
    """Write one JSON object on a line of its own. ASCII, so that it survives any terminal and pipe."""
    write_line(json.dumps(value, default=str))


def entry_fields(entry: Entry) -> dict[str, Any]:
    """An entry as a JSON object: `kind` first, then its own fields."""
    fields = {name: str(EntryId(*value)) if name == "entry_id" else value for name, value in asdict(entry).items()}
    fields.pop("kind", None)
    if isinstance(entry, Token):
        fields = {"entry_id": str(entry.entry_id), **fields}
    return {"kind": entry.kind, **{name: value for name, value in fields.items() if value is not None}}


def visible(text: str) -> str:
    """The text on one line: whatever a terminal would act upon, or couldn't be encoded, as an escape."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)


def print_rich(draw: Callable[[Console], None]) -> None:
    """Write what `draw` prints: in colour on a terminal, as plain text into a pipe.

    As bytes: a terminal or pipe whose locale knows no arrows gets them too, as it gets model text.
    """
    written = io.StringIO()
    draw(Console(file=written, force_terminal=sys.stdout.isatty(), highlight=False, emoji=False, markup=False))
    lines = written.getvalue().splitlines()
    sys.stdout.buffer.write("".join(f"{line.rstrip()}\n" for line in lines).encode("utf-8", "backslashreplace"))
    sys.stdout.buffer.flush()


def tell(text: str) -> None:
    """Write a line to stderr."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


@contextmanager
def reported() -> Iterator[None]:
    """Turns the errors of a command into a line on stderr and an exit code; warnings become a line too."""
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.simplefilter("ignore", DeprecationWarning)  # of libraries: nothing that a command's user could do
        warnings.showwarning = lambda message, *_, **__: tell(f"tokenrelay: {message}")
        try:
            refuse_unknown(os.environ)
            yield
        except TokenRelayError as error:
            tell(f"tokenrelay: {error}")
            raise typer.Exit(exit_code(error)) from None
        except BrokenPipeError:
            # Python flushes stdout once more at exit, and would complain.
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
