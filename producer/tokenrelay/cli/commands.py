"""The application `tokenrelay`: its commands `demo`, `serve` and `api-key`; the rooms register the others."""

from __future__ import annotations

from typing import Annotated, Final

import typer

from tokenrelay.cli.client import commands as client_commands
from tokenrelay.cli.demo.command import run_demo
from tokenrelay.cli.load.command import load
from tokenrelay.cli.ops import commands as ops_commands
from tokenrelay.cli.terminal.output import EXIT_CODES, add_command, write_json, write_message
from tokenrelay.shared.errors import SettingsError

app: Final = typer.Typer(
    help="LLM generation through a durable queue. Set TOKENRELAY_REDIS_URL to choose the Redis (see docs/settings.md).",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def demo() -> None:
    """Ask two questions on a temporary Redis and worker, and show each stream entry as redis-cli reads it."""
    run_demo()


def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on.", metavar="ADDRESS")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0 picks a free one.", metavar="N")] = None,
    demo: Annotated[bool, typer.Option("--demo", help="Start a temporary Redis and worker too.")] = False,
) -> None:
    """Serve HTTP: OpenAI's endpoints, resumable event streams, and a page that shows each request live."""
    try:
        from tokenrelay.gateway.server import serve as serve_http
    except ModuleNotFoundError as error:
        message = f"serve needs {error.name}, which isn't installed: pip install 'tokenrelay[gateway]'"
        raise SettingsError(message) from None
    serve_http(demo=demo, write_message=write_message, http_host=host, http_port=port)


def api_key(name: Annotated[str, typer.Argument(help="The key's owner.")]) -> None:
    """Create an API key for the gateway. Writes the key to stderr, and its entry for the API keys file to stdout."""
    from tokenrelay.gateway.core.tenants import new_key

    key, line = new_key(name)
    write_message(key)
    write_json(line)


client_commands.register(app)
ops_commands.register(app)
for command in (load, demo, serve, api_key):
    add_command(app, command)
