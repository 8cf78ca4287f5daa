"""The Lua scripts: which there are, and their sources, each put together from its own file and the parts that it needs.

Knows neither their arguments nor their replies: those stand in each script's header, and in `requests` and `jobs`.
"""

from __future__ import annotations

from functools import partial
from importlib.resources import files
from typing import Final

from tokenrelay.shared.redis.commands import Script
from tokenrelay.shared.wire.keys import Plane

SCRIPTS: Final = {
    Plane.TOKEN: (
        "create",
        "claim",
        "score",
        "append",
        "finish",
        "cancel",
        "expire",
        "fail",
        "renew",
        "release",
        "suspect",
    ),
    Plane.QUEUE: ("enqueue", "take", "close", "requeue", "drop", "keep", "extend", "maintain", "forget", "admit"),
}
"""By their folders: a script's keys are all of its plane."""
_GROWING: Final = frozenset({"create", "score", "append", "enqueue", "take", "admit"})
"""Scripts that are refused when Redis is full. The others end requests, which is what frees memory."""
_PARTS: Final = {
    "create": ("prelude", "ending"),
    "claim": ("prelude", "ending", "obeying"),
    "append": ("prelude", "appending"),
    "finish": ("prelude", "ending", "appending"),
    "cancel": ("prelude", "ending"),
    "expire": ("prelude", "ending"),
    "fail": ("prelude", "ending"),
    "close": ("clock", "prelude"),
    "requeue": ("clock", "prelude"),
    "keep": ("clock", "prelude"),
    "extend": ("clock", "prelude"),
    "take": ("empty", "clock"),
    "enqueue": (),
    "maintain": (),
    "forget": (),
    "admit": (),
}
"""What stands before a script, where that isn't the prelude of its plane alone."""


def _read(plane: Plane, name: str, modern: bool) -> str:
    """The Lua source of a script. `modern` servers (Redis ≥ 7) take the flag that allows it when memory is short."""
    folder = files("tokenrelay.shared.store.scripts") / plane
    parts = (*_PARTS.get(name, ("prelude",)), name)
    body = "".join((folder / f"{part}.lua").read_text("utf-8") for part in parts)
    header = "#!lua flags=allow-oom\n" if modern and name not in _GROWING else ""
    return header + body


_ALL: Final = {
    name: Script(name, plane, partial(_read, plane, name)) for plane, names in SCRIPTS.items() for name in names
}


def script(name: str) -> Script:
    """The script of that name."""
    return _ALL[name]
