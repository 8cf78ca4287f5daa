"""The commands of those who run the system: `top`, `list`, `load`. What each shows is its module's."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from tokenrelay.cli.load.command import load
from tokenrelay.cli.ops import top as live
from tokenrelay.cli.ops.listing import MOST_LISTED, Listed, write_list
from tokenrelay.cli.output import EXIT_CODES, reported
from tokenrelay.shared.redis.connections import connect
from tokenrelay.shared.settings import ProducerSettings

if TYPE_CHECKING:
    import redis

Json = Annotated[bool, typer.Option("--json", help="JSON: one object per line.")]


def register(app: typer.Typer) -> None:
    """Give these commands to `app`."""
    app.command(epilog=EXIT_CODES)(reported()(top))
    app.command("list", epilog=EXIT_CODES)(reported()(list_requests))
    app.command(epilog=EXIT_CODES)(reported()(load))


def top(
    interval: Annotated[float, typer.Option(help="Seconds between two looks.", metavar="S")] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="One frame, then leave; so it is anyway in a pipe.")] = False,
    json: Json = False,
) -> None:
    """Watch workers, queues, tokens per second, latencies and requests. q or Ctrl-C leaves. It only reads."""
    live.check_interval(interval)
    with _client() as client:
        if once or json or not (sys.stdout.isatty() and sys.stdin.isatty()):
            live.write_once(client, json=json)
        else:
            live.watch(client, interval)


def list_requests(
    state: Annotated[Listed | None, typer.Option(help="Only requests in this state.")] = None,
    model: Annotated[str | None, typer.Option(help="Only this model's.", metavar="NAME")] = None,
    limit: Annotated[int, typer.Option(min=1, max=MOST_LISTED, help="At most so many.", metavar="N")] = 20,
    json: Json = False,
) -> None:
    """List requests, the newest first: those that wait, those that run, and those whose retention isn't over."""
    with _client() as client:
        write_list(client, state, model, limit=limit, json=json)


def _client() -> redis.Redis:
    return connect(ProducerSettings.from_environment().redis_url.get_secret_value())
