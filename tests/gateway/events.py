"""A parser of server-sent events for tests, by the WHATWG's rules, independent of our code."""

from __future__ import annotations

import json
import re
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import httpx


@dataclass(frozen=True, slots=True)
class Event:
    """One dispatched event."""

    kind: str
    data: str
    last_id: str

    @property
    def json(self) -> Any:
        return json.loads(self.data)


def parse(text: str) -> Iterator[Event]:
    """The events of a whole stream."""
    yield from dispatch(re.split(r"\r\n|\r|\n", text))


def dispatch(lines: Iterable[str]) -> Iterator[Event]:
    """Yield the events of a stream's lines, each as soon as its blank line arrives."""
    kind, data, last_id = "", list[str](), ""
    for line in lines:
        if not line:
            if data:
                yield Event(kind or "message", "\n".join(data), last_id)
            kind, data = "", []
            continue
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "event":
            kind = value
        elif name == "data":
            data.append(value)
        elif name == "id" and "\0" not in value:
            last_id = value


def split_lines(chunks: Iterable[str]) -> Iterator[str]:
    """Lines as they arrive, split by the standard's rules: httpx's `iter_lines` also splits at U+2028 and others."""
    rest = ""
    for chunk in chunks:
        *lines, rest = re.split(r"\n", rest + chunk)
        yield from lines


@contextmanager
def following(client: httpx.Client, path: str, **headers: str) -> Iterator[Iterator[Event]]:
    """The events of GET `path`, as they arrive."""
    with client.stream("GET", path, headers=headers) as response:
        assert response.status_code == 200, response.read()
        yield dispatch(split_lines(response.iter_text()))
