"""Observers of a stream, entry by entry: redis-cli, or redis-py if it isn't installed."""

from __future__ import annotations

import ast
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol, Self

from tokenrelay.shared.store.record import Field
from tokenrelay.shared.wire import keys
from tokenrelay.shared.wire.entries import text

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import redis

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


class Observer(Protocol):
    """Runs Redis commands. `run` returns the strings of the reply in order; empty for a nil reply."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def run(self, *command: str) -> list[str]: ...


class RedisCli:
    """One redis-cli process for all commands. `--no-raw` prints each string on a line, quoted and escaped."""

    def __init__(self, command: Sequence[str]) -> None:
        self._process = subprocess.Popen(
            [*command, "--no-raw"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="ascii"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def run(self, *command: str) -> list[str]:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(f"{' '.join(command)}\nECHO end-of-reply\n")
        self._process.stdin.flush()
        found: list[str] = []
        for line in self._process.stdout:
            if line == '"end-of-reply"\n':
                return found
            if '"' in line:  # its escapes are those of a Python bytes literal
                found.append(ast.literal_eval("b" + line[line.index('"') :]).decode("utf-8", "replace"))
        raise RuntimeError(f"redis-cli ended with exit status {self._process.wait()}")


class RedisPy:
    """Runs the commands with the caller's redis-py client."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def run(self, *command: str) -> list[str]:
        return list(_flat(self._client.execute_command(*command)))  # type: ignore[no-untyped-call]


def watch(observer: Observer, request_id: str) -> Iterator[ObservedEntry]:
    """Yield each entry of the request's stream as it's written, up to the terminal one."""
    last, seen = "0-0", None
    while seen is None or not seen.last:
        found = observer.run("XREAD", "COUNT", "1", "BLOCK", _BLOCK_MS, "STREAMS", keys.stream(request_id), last)
        if not found:
            continue
        (state,) = observer.run("HGET", keys.request(request_id), Field.STATE)
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
