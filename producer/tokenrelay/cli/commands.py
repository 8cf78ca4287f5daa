"""The commands: what each reads, asks for and writes. Options are options.py's, output and exit codes output.py's."""

from __future__ import annotations

import sys
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from tokenrelay.cli.demo.command import run_demo
from tokenrelay.cli.ops import commands as operating
from tokenrelay.cli.ops.overview import write_overview, write_status
from tokenrelay.cli.options import with_options
from tokenrelay.cli.output import EXIT_CODES, entry_fields, reported, tell, write_json, write_text
from tokenrelay.cli.trace import write_trace
from tokenrelay.producer import Consumer, Producer
from tokenrelay.producer.local import LocalRedis, LocalWorker
from tokenrelay.shared.errors import RequestError, SettingsError
from tokenrelay.shared.redis.connections import connect
from tokenrelay.shared.settings import ProducerSettings
from tokenrelay.shared.wire.entries import Ended, Token

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tokenrelay.producer import Generation, ReadOnlyGeneration

app: Final = typer.Typer(
    help="Ask models through a durable queue. Redis is found by TOKENRELAY_REDIS_URL (see docs/settings.md).",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Prompt = Annotated[str | None, typer.Argument(help="The prompt; - reads it from standard input.", metavar="PROMPT")]
RequestId = Annotated[str, typer.Argument(help="A request's ID, as submit prints it.", metavar="ID")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object per line.")]
Local = Annotated[bool, typer.Option("--local", help="Bring up a Redis and a worker for the time of the call.")]


@app.command(epilog=EXIT_CODES)
@reported()
@with_options
def ask(prompt: Prompt = None, *, local: Local = False, json: Json = False, **options: Any) -> None:
    """Ask a model and print its answer as it is written. Ctrl-C cancels."""
    with _producer(local) as producer:
        generation = producer.submit(_prompt(prompt), **options)
        with _cancelled_unless_read(generation):
            if sys.stderr.isatty():
                tell(f"request {generation.request_id}")
            _write_entries(generation, json=json)


@app.command(epilog=EXIT_CODES)
@reported()
@with_options
def submit(prompt: Prompt = None, *, json: Json = False, **options: Any) -> None:
    """Put a request into the queue and print its ID. It waits there until a worker takes it."""
    with Producer() as producer:
        generation = producer.submit(_prompt(prompt), **options)
        if json:
            write_json({"request_id": generation.request_id, "queue": generation.status().queue})
        else:
            write_text(f"{generation.request_id}\n")


@app.command(epilog=EXIT_CODES)
@reported()
def follow(
    request_id: RequestId,
    after: Annotated[int, typer.Option(help="Begin behind this token.", metavar="N")] = 0,
    json: Json = False,
) -> None:
    """Print a request's answer, from its first token or from any other, up to its end. Ctrl-C leaves it running."""
    with Consumer() as consumer:
        _write_entries(consumer.get(request_id), after=after, json=json)


@app.command(epilog=EXIT_CODES)
@reported()
def cancel(request_id: RequestId, json: Json = False) -> None:
    """Cancel a request, wherever it is. One that has ended stays as it is."""
    with Producer() as producer:
        generation = producer.get(request_id)
        cancelled, state = generation.cancel(), generation.status().state
        if json:
            write_json({"request_id": request_id, "cancelled": cancelled, "state": state})
        else:
            write_text(f"{'cancelled' if cancelled else f'had ended before: {state}'}\n")


@app.command(epilog=EXIT_CODES)
@reported()
def status(
    request_id: Annotated[
        str | None, typer.Argument(help="A request's ID.", metavar="[ID]", show_default=False)
    ] = None,
    json: Json = False,
) -> None:
    """Show what a request is now, or the queues and who serves them; and say what's wrong when nothing moves."""
    settings = ProducerSettings.from_environment()
    with connect(settings.redis_url.get_secret_value()) as client:
        if request_id is None:
            write_overview(client, json=json)
        else:
            write_status(client, Consumer(connection=client).get(request_id).status(), json=json)


operating.register(app)


@app.command(epilog=EXIT_CODES)
@reported()
def trace(request_id: RequestId, json: Json = False) -> None:
    """Show what a request went through, layer by layer at Redis's own times, and what streaming gained."""
    settings = ProducerSettings.from_environment()
    with connect(settings.redis_url.get_secret_value()) as client:
        write_trace(client, request_id, json=json)


@app.command(epilog=EXIT_CODES)
@reported()
def demo() -> None:
    """Ask two questions on a Redis and a worker of its own, and show each stream entry as redis-cli sees it."""
    run_demo()


@app.command(epilog=EXIT_CODES)
@reported()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on.", metavar="ADDRESS")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0 takes a free one.", metavar="N")] = None,
    demo: Annotated[bool, typer.Option("--demo", help="With a Redis and a worker of its own.")] = False,
) -> None:
    """Serve HTTP: OpenAI's endpoints, resumable event streams, and a page that shows a request's trace live."""
    try:
        from tokenrelay.gateway.serving import serve as serve_http
    except ModuleNotFoundError as error:
        told = f"serve needs {error.name}, which isn't installed: pip install 'tokenrelay[gateway]'"
        raise SettingsError(told) from None
    serve_http(demo=demo, tell=tell, http_host=host, http_port=port)


@app.command(epilog=EXIT_CODES)
@reported()
def api_key(name: Annotated[str, typer.Argument(help="Whose key it is.")]) -> None:
    """Make an API key for the gateway: the key itself on stderr, its entry for the keys' file on stdout."""
    from tokenrelay.gateway.tenancy.tenants import new_key

    key, line = new_key(name)
    tell(key)
    write_json(line)


def _prompt(given: str | None) -> str | None:
    if given != "-":
        return given
    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise RequestError(f"prompt: standard input isn't UTF-8 ({error})", field="prompt") from None


@contextmanager
def _producer(local: bool) -> Iterator[Producer]:
    with ExitStack() as stack:
        url = None
        if local:
            if sys.stderr.isatty():
                tell("starting a Redis and a worker …")
            url = stack.enter_context(LocalRedis()).url
            stack.enter_context(LocalWorker(url))
        yield stack.enter_context(Producer(url=url))


@contextmanager
def _cancelled_unless_read(generation: Generation) -> Iterator[None]:
    try:
        yield
    except (KeyboardInterrupt, BrokenPipeError):
        generation.cancel()
        raise


def _write_entries(generation: ReadOnlyGeneration, *, after: int = 0, json: bool) -> None:
    """Write the entries behind token `after` as they come. Raises how it ended, where that isn't an answer."""
    for entry in generation.entries(after):
        if json:
            write_json({"request_id": generation.request_id, **entry_fields(entry)})
        elif isinstance(entry, Token | Ended):
            write_text(entry.text)
    if not json:
        write_text("\n")
    generation.result()
