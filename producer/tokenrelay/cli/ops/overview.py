"""What `tokenrelay status` shows: one request, or the queues of this Redis, and in words what holds them up."""

from __future__ import annotations

import shutil
import textwrap
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

from redis.exceptions import NoPermissionError

from tokenrelay.cli.ops import sightings
from tokenrelay.cli.ops.diagnosis import all_is_well, diagnosed
from tokenrelay.cli.ops.explanation import explained, moving
from tokenrelay.cli.ops.system import system
from tokenrelay.cli.output import visible, write_json, write_line
from tokenrelay.producer._core.rounds import Driver

if TYPE_CHECKING:
    from collections.abc import Sequence

    import redis

    from tokenrelay.cli.ops.diagnosis import Finding
    from tokenrelay.cli.ops.sightings import Place, Sighting
    from tokenrelay.cli.ops.system import System
    from tokenrelay.producer import Status
    from tokenrelay.producer._core.rounds import Steps

_OLDEST_CLAIMED: Final = 50
"""Requests taken off the queues whose leases are looked at, those held longest."""


def write_status(client: redis.Redis, status: Status, *, json: bool) -> None:
    """One request, and why it doesn't move. Raises RedisUnusable."""
    findings = Driver(client).run(explained(status))
    fields: dict[str, Any] = {**asdict(status), "seconds_left": round(status.seconds_left, 3)}
    if json:
        write_json({**fields, "findings": [asdict(finding) for finding in findings]})
        return
    shown = ("request_id", "state", "tokens", "attempts", "queue", "seconds_left", "cancelled_by", "metadata")
    for name in shown:
        if fields[name] not in (None, {}) and not (name == "seconds_left" and status.state.terminal):
            write_line(f"{name:13} {fields[name]}")
    if not status.state.terminal:
        _write_findings(findings, moving(status))


def write_overview(client: redis.Redis, *, json: bool) -> None:
    """Every queue that tokenrelay has used, and what's wrong. Raises RedisUnusable."""
    now, findings = Driver(client).run(looked_at())
    if json:
        queues, workers = [asdict(queue) for queue in now.queues], [asdict(worker) for worker in now.workers]
        write_json({"queues": queues, "workers": workers, "findings": [asdict(finding) for finding in findings]})
        return
    width = max([5, *(len(queue.name) for queue in now.queues)])
    write_line(f"{'queue':{width}}  waiting  running  workers")
    for queue in now.queues:
        write_line(f"{queue.name:{width}}  {queue.waiting:7}  {queue.running:7}  {queue.workers:7}")
    _write_findings(findings, all_is_well(now))


def looked_at() -> Steps[tuple[System, list[Finding]]]:
    """The system, and what is wrong with it. Raises RedisError where Redis doesn't answer."""
    now = yield from system()
    places: list[tuple[str, Place]] = [(queue.name, "running") for queue in now.queues if queue.running]
    claimed: list[Sighting] = []
    try:
        found = yield from sightings.registered(places, 0, _OLDEST_CLAIMED - 1, newest=False)
        claimed = yield from sightings.sighted(found[:_OLDEST_CLAIMED], tail=1)
    except NoPermissionError:  # a producer lists no requests
        pass
    return now, diagnosed(now, claimed)


def _write_findings(findings: Sequence[Finding], otherwise: str) -> None:
    width = min(shutil.get_terminal_size((100, 24)).columns, 100)
    write_line()
    if not findings:
        write_line(textwrap.fill(visible(otherwise), width, break_long_words=False, break_on_hyphens=False))
    for finding in findings:
        for mark, told in (("! ", finding.message), ("  → ", finding.remedy)):
            indent = " " * len(mark)
            lines = textwrap.wrap(visible(told), width - len(mark), break_long_words=False, break_on_hyphens=False)
            write_line("\n".join((indent if number else mark) + line for number, line in enumerate(lines)))
