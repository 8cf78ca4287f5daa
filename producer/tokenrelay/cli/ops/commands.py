"""The operators' commands: `status`, `top`, `list`."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from tokenrelay.cli.ops import top as live
from tokenrelay.cli.ops.listing import MAX_LISTED, ListState, write_list
from tokenrelay.cli.ops.overview import write_overview, write_status
from tokenrelay.cli.terminal.output import EXIT_CODES, exit_on_error
from tokenrelay.producer._core.drivers import Driver
from tokenrelay.producer._core.endings import check_id
from tokenrelay.producer._core.endings import status as read_status
from tokenrelay.shared.redis.servers import connected
from tokenrelay.shared.settings import ProducerSettings

if TYPE_CHECKING:
    from collections.abc import Iterator

Json = Annotated[bool, typer.Option("--json", help="Print JSON, one object per line.")]


def register(app: typer.Typer) -> None:
    """Add these commands to `app`."""
    app.command(epilog=EXIT_CODES)(exit_on_error()(status))
    app.command(epilog=EXIT_CODES)(exit_on_error()(top))
    app.command("list", epilog=EXIT_CODES)(exit_on_error()(list_requests))


def status(
    request_id: Annotated[str | None, typer.Argument(help="A request ID.", metavar="[ID]", show_default=False)] = None,
    json: Json = False,
) -> None:
    """Show a request's state, or all queues and workers, with a diagnosis if requests aren't progressing."""
    with _driver() as driver:
        if request_id is None:
            write_overview(driver, json=json)
        else:
            write_status(driver, driver.run(read_status(check_id(request_id))), json=json)


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


@contextmanager
def _driver() -> Iterator[Driver]:
    with connected(ProducerSettings.from_environment().urls) as servers:
        yield Driver(*servers)
