"""`tokenrelay list`: the requests that Redis still knows, the newest first; found without a SCAN."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Final

from tokenrelay.cli.drawing import Columns, duration, table
from tokenrelay.cli.ops import sightings
from tokenrelay.cli.ops.snapshot import request_json
from tokenrelay.cli.ops.system import system
from tokenrelay.cli.output import print_rich, tell, write_json
from tokenrelay.producer._core.rounds import Driver

if TYPE_CHECKING:
    from collections.abc import Sequence

    import redis
    from rich.table import Table

    from tokenrelay.cli.ops.sightings import Found, Place, Sighting
    from tokenrelay.producer._core.rounds import Steps

MOST_LISTED: Final = 1000
_PAGE: Final = 200
_MOST_LOOKED_AT: Final = 5000
"""Where a state is asked for that RQ doesn't tell apart (completed and incomplete, say), so many are tried for it."""


class Listed(StrEnum):
    """The states that can be asked for. `running` is the stream's `in_progress`."""

    QUEUED = "queued"
    RUNNING = "running"
    COMPLETED = "completed"
    INCOMPLETE = "incomplete"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


_PLACES: Final[dict[Listed, tuple[Place, ...]]] = {
    Listed.QUEUED: ("queued", "running"),  # one that was just handed back, or just taken
    Listed.RUNNING: ("running",),
    Listed.COMPLETED: ("finished",),
    Listed.INCOMPLETE: ("finished",),
    Listed.FAILED: ("failed",),
    Listed.CANCELLED: ("canceled", "running"),  # its worker has yet to tell RQ
    Listed.EXPIRED: ("failed",),
}
_EVERYWHERE: Final[tuple[Place, ...]] = ("queued", "running", "finished", "failed", "canceled")


def write_list(client: redis.Redis, state: Listed | None, model: str | None, *, limit: int, json: bool) -> None:
    """Write the newest requests of that state and model. Raises RedisUnusable."""
    found, now_us, cut = Driver(client).run(_listed(state, model, limit))
    if json:
        for one in found:
            write_json(request_json(one, now_us))
        return
    print_rich(lambda console: console.print(_table(found, now_us)))
    if not found:
        tell("no such request" if state or model else "no request: none was submitted, or retention is over for all")
    elif cut:
        tell(f"the newest {limit}; --limit N shows more")


def _listed(state: Listed | None, model: str | None, limit: int) -> Steps[tuple[list[Sighting], int, bool]]:
    now = yield from system()
    queues = [queue.name for queue in now.queues if model in (None, queue.model)]
    seen: dict[str, Sighting] = {}
    for place in _PLACES[state] if state else _EVERYWHERE:
        for one in (yield from _of_place(queues, place, state, limit + 1)):
            seen.setdefault(one.request_id, one)
    newest = sorted(seen.values(), key=lambda one: one.queued_us, reverse=True)
    return newest[:limit], now.now_us, len(newest) > limit


def _of_place(queues: Sequence[str], place: Place, state: Listed | None, most: int) -> Steps[list[Sighting]]:
    """The newest of one kind of place over all queues: a page at a time, until there are enough of that state."""
    kept: list[Sighting] = []
    for first in range(0, _MOST_LOOKED_AT, _PAGE):
        last = first + _PAGE - 1
        found: list[Found] = []
        if place == "queued":
            for queue in queues:
                found += yield from sightings.queued(queue, first, last)
        else:
            found = yield from sightings.registered([(queue, place) for queue in queues], first, last, newest=True)
        seen = yield from sightings.sighted(found, tail=1)
        kept += [one for one in seen if state in (None, listed(one))]
        if not found or len(kept) >= most:
            break
    return kept


def listed(one: Sighting) -> Listed:
    """What the request is, in the words of `list`: one that lost its worker is queued again."""
    if one.state.terminal:
        return Listed(one.state)
    return Listed.RUNNING if one.running else Listed.QUEUED


def _table(found: Sequence[Sighting], now_us: int) -> Table:
    columns: Columns = (
        ("request", "<"),
        ("state", "<"),
        ("age", ">"),
        ("tokens", ">"),
        ("tries", ">"),
        ("queue", "<"),
    )
    rows = [
        (
            one.request_id,
            listed(one),
            duration(max(0.0, (now_us - one.queued_us) / 1e6)),
            f"{one.tokens:,}",
            str(one.attempts),
            one.queue.removeprefix("tokenrelay."),
        )
        for one in found
    ]
    return table(columns, rows)
