"""Observers of a stream, entry by entry: redis-cli, or redis-py if it isn't installed."""

from __future__ import annotations

import ast
import subprocess
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tokenrelay.shared.store.record import Field
from tokenrelay.shared.wire import keys
from tokenrelay.shared.wire.entries import text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import redis

    Run = Callable[..., list[str]]
    """Runs a Redis command. Returns the strings of the reply in order; none for a nil reply."""

_TERMINAL_FIELD: Final = "finish_reason"
_BLOCK_MS: Final = "1000"


@dataclass(frozen=True, slots=True)
class ObservedEntry:
    """One entry, and the request's state right after it was read."""

    entry_id: str
    fields: Mapping[str, str]
    state: str

    @property
    def last(self) -> bool:
        return _TERMINAL_FIELD in self.fields


@contextmanager
def redis_cli(command: Sequence[str]) -> Iterator[Run]:
    """One redis-cli process for all commands. `--no-raw` prints each string on a line, quoted and escaped."""
    process = subprocess.Popen([*command, "--no-raw"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="ascii")
    written, shown = process.stdin, process.stdout
    assert written
    assert shown

    def run(*command: str) -> list[str]:
        written.write(f"{' '.join(command)}\nECHO end-of-reply\n")
        written.flush()
        found: list[str] = []
        for line in shown:
            if line == '"end-of-reply"\n':
                return found
            if '"' in line:  # its escapes are those of a Python bytes literal
                found.append(ast.literal_eval("b" + line[line.index('"') :]).decode("utf-8", "replace"))
        raise RuntimeError(f"redis-cli ended with exit status {process.wait()}")

    try:
        yield run
    finally:
        process.communicate()


def redis_py(client: redis.Redis) -> Run:
    """Runs the commands with the caller's client."""
    return lambda *command: list(_flat(client.execute_command(*command)))  # type: ignore[no-untyped-call]


def watch(run: Run, request_id: str) -> Iterator[ObservedEntry]:
    """Yield each entry of the request's stream as it's written, up to the terminal one."""
    last, seen = "0-0", None
    while seen is None or not seen.last:
        found = run("XREAD", "COUNT", "1", "BLOCK", _BLOCK_MS, "STREAMS", keys.stream(request_id), last)
        if not found:
            continue
        (state,) = run("HGET", keys.request(request_id), Field.STATE)
        last, pairs = found[1], found[2:]
        seen = ObservedEntry(last, dict(zip(pairs[::2], pairs[1::2], strict=True)), state)
        yield seen


def _flat(reply: object) -> Iterator[str]:
    if isinstance(reply, dict):
        reply = [part for pair in reply.items() for part in pair]
    if isinstance(reply, list | tuple):
        for part in reply:
            yield from _flat(part)
    elif reply is not None:
        yield text(reply)
