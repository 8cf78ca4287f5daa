"""The Lua scripts: which there are, and their sources, each put together from its own file and the parts that it needs.

Knows neither their arguments nor their replies: those stand in each script's header, and in `requests` and `queues`.
"""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.resources import files
from typing import Final

SCRIPTS: Final = {
    "token": ("create", "claim", "append", "finish", "cancel", "expire", "fail", "renew", "release", "suspect"),
    "queue": ("enqueue", "take", "close", "requeue", "drop", "keep", "extend", "maintain", "forget", "admit"),
}
_SHORT_OF_MEMORY: Final = frozenset(
    {
        "claim",
        "renew",
        "release",
        "finish",
        "cancel",
        "expire",
        "fail",
        "suspect",
        "close",
        "requeue",
        "drop",
        "keep",
        "extend",
        "maintain",
        "forget",
    }
)
"""Scripts that must work when Redis is full: they end requests, which is what frees memory."""
_PARTS: Final = {
    "create": ("prelude", "ending"),
    "claim": ("prelude", "ending"),
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


@cache
def source(script: str, *, modern: bool) -> str:
    """The Lua source of a script. `modern` servers (Redis ≥ 7) take the flag that allows it when memory is short."""
    plane = next(plane for plane, names in SCRIPTS.items() if script in names)
    folder = files("tokenrelay.shared.store.scripts") / plane
    names = (*_PARTS.get(script, ("prelude",)), script)
    body = "".join((folder / f"{name}.lua").read_text("utf-8") for name in names)
    header = "#!lua flags=allow-oom\n" if modern and script in _SHORT_OF_MEMORY else ""
    return header + body


@cache
def sha1(script: str, *, modern: bool) -> str:
    """What EVALSHA calls the script by."""
    return hashlib.sha1(source(script, modern=modern).encode(), usedforsecurity=False).hexdigest()
