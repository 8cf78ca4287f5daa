"""The operators' commands: `status` of one request or of all queues, `top`, `list`."""

from __future__ import annotations

import shutil
import sys
import textwrap
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from redis.exceptions import NoPermissionError

from tokenrelay.cli.ops import request_summaries
from tokenrelay.cli.ops import top as live
from tokenrelay.cli.ops.diagnosis import diagnose, healthy_line
from tokenrelay.cli.ops.explanation import explain_request, progress_line
from tokenrelay.cli.ops.listing import MAX_LISTED, ListState, write_list
from tokenrelay.cli.ops.system import read_system
from tokenrelay.cli.terminal.output import Json, add_command, visible, write_json, write_line
from tokenrelay.producer._core.drivers import connected_driver
from tokenrelay.producer._core.endings import check_id
from tokenrelay.producer._core.endings import status as read_status
from tokenrelay.shared.settings import ProducerSettings

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager

    from tokenrelay.cli.ops.diagnosis import Finding
    from tokenrelay.cli.ops.request_summaries import Place, RequestSummary
    from tokenrelay.cli.ops.system import System
    from tokenrelay.producer import Status
    from tokenrelay.producer._core.drivers import Driver
    from tokenrelay.producer._core.steps import Steps

_MAX_CLAIMED: Final = 50
"""Number of claimed requests whose leases are checked, oldest first."""


def register(app: typer.Typer) -> None:
    """Add these commands to `app`."""
    add_command(app, status)
    add_command(app, top)
    add_command(app, list_requests, "list")


def status(
    request_id: Annotated[str | None, typer.Argument(help="A request ID.", metavar="[ID]", show_default=False)] = None,
    json: Json = False,
) -> None:
    """Show a request's state, or all queues and workers, with a diagnosis if requests aren't progressing."""
    with _driver() as driver:
        if request_id is None:
            _write_overview(driver, json=json)
        else:
            _write_status(driver, driver.run(read_status(check_id(request_id))), json=json)


def top(
    interval: Annotated[float, typer.Option(help="Seconds between updates.", metavar="S")] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Print one frame and exit; the default in a pipe.")] = False,
    json: Json = False,
) -> None:
    """Watch workers, queues, tokens per second, latencies and requests. Read-only. q or Ctrl-C exits."""
    live.check_interval(interval)
    with _driver() as driver:
        if once or json or not (sys.stdout.isatty() and sys.stdin.isatty()):
            live.write_once(driver, json=json)
        else:
            live.watch(driver, interval)


def list_requests(
    state: Annotated[ListState | None, typer.Option(help="Only requests in this state.")] = None,
    model: Annotated[str | None, typer.Option(help="Only requests of this model.", metavar="NAME")] = None,
    limit: Annotated[int, typer.Option(min=1, max=MAX_LISTED, help="Maximum number of requests.", metavar="N")] = 20,
    json: Json = False,
) -> None:
    """List requests, newest first: queued, running, and ended within their retention."""
    with _driver() as driver:
        write_list(driver, state, model, limit=limit, json=json)


def _driver() -> AbstractContextManager[Driver]:
    return connected_driver(ProducerSettings.from_environment().urls)


def _write_status(driver: Driver, status: Status, *, json: bool) -> None:
    """Write one request's status and findings. Raises RedisUnusable."""
    findings = driver.run(explain_request(status))
    fields: dict[str, Any] = {**asdict(status), "seconds_left": round(status.seconds_left, 3)}
    if json:
        write_json({**fields, "findings": [asdict(finding) for finding in findings]})
        return
    shown = ("request_id", "state", "tokens", "attempts", "queue", "seconds_left", "cancelled_by", "metadata")
    for name in shown:
        if fields[name] not in (None, {}) and not (name == "seconds_left" and status.state.terminal):
            write_line(f"{name:13} {fields[name]}")
    if not status.state.terminal:
        _write_findings(findings, progress_line(status))


def _write_overview(driver: Driver, *, json: bool) -> None:
    """Write all of tokenrelay's queues and the system's findings. Raises RedisUnusable."""
    now, findings = driver.run(read_overview())
    if json:
        queues, workers = [asdict(queue) for queue in now.queues], [asdict(worker) for worker in now.workers]
        write_json({"queues": queues, "workers": workers, "findings": [asdict(finding) for finding in findings]})
        return
    width = max([5, *(len(queue.name) for queue in now.queues)])
    write_line(f"{'queue':{width}}  waiting  running  workers")
    for queue in now.queues:
        write_line(f"{queue.name:{width}}  {queue.waiting:7}  {queue.running:7}  {queue.workers:7}")
    _write_findings(findings, healthy_line(now))


def read_overview() -> Steps[tuple[System, list[Finding]]]:
    """The system and its findings. Raises RedisError if Redis doesn't reply."""
    now = yield from read_system()
    places: list[tuple[str, Place]] = [(queue.name, "running") for queue in now.queues if queue.running]
    claimed: list[RequestSummary] = []
    try:
        found = yield from request_summaries.list_registry(places, 0, _MAX_CLAIMED - 1, newest=False)
        claimed = yield from request_summaries.read_summaries(found[:_MAX_CLAIMED], tail=1)
    except NoPermissionError:  # a producer's user may not list requests
        pass
    return now, diagnose(now, claimed)


def _write_findings(findings: Sequence[Finding], otherwise: str) -> None:
    width = min(shutil.get_terminal_size((100, 24)).columns, 100)
    write_line()
    if not findings:
        write_line(textwrap.fill(visible(otherwise), width, break_long_words=False, break_on_hyphens=False))
    for finding in findings:
        for mark, sentence in (("! ", finding.message), ("  → ", finding.remedy)):
            indent = " " * len(mark)
            lines = textwrap.wrap(visible(sentence), width - len(mark), break_long_words=False, break_on_hyphens=False)
            write_line("\n".join((indent if number else mark) + line for number, line in enumerate(lines)))
