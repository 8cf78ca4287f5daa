"""`tokenrelay list`: the requests in Redis, newest first, found without SCAN."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Final, assert_never

from tokenrelay.cli.ops import request_summaries
from tokenrelay.cli.ops.snapshot import request_json
from tokenrelay.cli.ops.system import read_system
from tokenrelay.cli.terminal.output import print_rich, write_json, write_message
from tokenrelay.cli.terminal.tables import Columns, duration, table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

    from tokenrelay.cli.ops.request_summaries import Place, RequestRef, RequestSummary
    from tokenrelay.producer._core.drivers import Driver
    from tokenrelay.producer._core.steps import Steps

MAX_LISTED: Final = 1000
_PAGE: Final = 200
_MAX_SCANNED: Final = 5000
"""Limit of requests read to find those in a state that RQ doesn't distinguish, such as completed and incomplete."""


class ListState(StrEnum):
    """States to filter by. `running` is `in_progress` in the stream."""

    QUEUED = "queued"
    RUNNING = "running"
    COMPLETED = "completed"
    INCOMPLETE = "incomplete"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


_EVERYWHERE: Final[tuple[Place, ...]] = ("queued", "running", "finished", "failed", "canceled")


def write_list(driver: Driver, state: ListState | None, model: str | None, *, limit: int, json: bool) -> None:
    """Write the newest requests of that state and model. Raises RedisUnusable."""
    found, now_us, cut = driver.run(_listed(state, model, limit))
    if json:
        for one in found:
            write_json(request_json(one, now_us))
        return
    print_rich(lambda console: console.print(_table(found, now_us)))
    if not found:
        write_message("no such request" if state or model else "no requests: none submitted, or all past retention")
    elif cut:
        write_message(f"the newest {limit}; --limit N shows more")


def _listed(state: ListState | None, model: str | None, limit: int) -> Steps[tuple[list[RequestSummary], int, bool]]:
    now = yield from read_system()
    queues = [queue.name for queue in now.queues if model in (None, queue.model)]
    seen: dict[str, RequestSummary] = {}
    for place in _places(state):
        for one in (yield from _of_place(queues, place, state, limit + 1)):
            seen.setdefault(one.request_id, one)
    newest = sorted(seen.values(), key=lambda one: one.queued_us, reverse=True)
    return newest[:limit], now.now_us, len(newest) > limit


def _places(state: ListState | None) -> tuple[Place, ...]:
    """Where RQ may hold the jobs of requests in that state."""
    match state:
        case ListState.QUEUED:
            return "queued", "running"  # just handed back, or just taken
        case ListState.RUNNING:
            return ("running",)
        case ListState.COMPLETED | ListState.INCOMPLETE:
            return ("finished",)
        case ListState.FAILED | ListState.EXPIRED:
            return ("failed",)
        case ListState.CANCELLED:
            return "canceled", "running"  # until its worker has updated RQ
        case None:
            return _EVERYWHERE
        case _:
            assert_never(state)


def _of_place(queues: Sequence[str], place: Place, state: ListState | None, most: int) -> Steps[list[RequestSummary]]:
    """The newest requests of one place over all queues, paged until `most` are in that state."""
    kept: list[RequestSummary] = []
    for first in range(0, _MAX_SCANNED, _PAGE):
        last = first + _PAGE - 1
        found: list[RequestRef] = []
        if place == "queued":
            for queue in queues:
                found += yield from request_summaries.list_queued(queue, first, last)
        else:
            found = yield from request_summaries.list_registry(
                [(queue, place) for queue in queues], first, last, newest=True
            )
        seen = yield from request_summaries.read_summaries(found, tail=1)
        kept += [one for one in seen if state in (None, list_state(one))]
        if not found or len(kept) >= most:
            break
    return kept


def list_state(one: RequestSummary) -> ListState:
    """The request's state as `list` shows it: `queued` if it lost its worker."""
    if not one.state.terminal:
        return ListState.RUNNING if one.running else ListState.QUEUED
    return ListState(one.state)


def _table(found: Sequence[RequestSummary], now_us: int) -> Table:
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
            list_state(one),
            duration(max(0.0, (now_us - one.queued_us) / 1e6)),
            f"{one.tokens:,}",
            str(one.attempts),
            one.queue.removeprefix("tokenrelay."),
        )
        for one in found
    ]
    return table(columns, rows)
