"""The commands `ask`, `submit`, `follow`, `cancel` and `trace`."""

from __future__ import annotations

import sys
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokenrelay.cli.client.options import with_options
from tokenrelay.cli.client.trace import write_trace
from tokenrelay.cli.terminal.confidence import Confidence, legend
from tokenrelay.cli.terminal.output import (
    Json,
    add_command,
    entry_fields,
    write_json,
    write_message,
    write_text,
)
from tokenrelay.producer import Consumer, Producer
from tokenrelay.producer._core.drivers import connected_driver
from tokenrelay.producer.local import LocalRedis, LocalWorker
from tokenrelay.shared.errors import GenerationError, RequestError
from tokenrelay.shared.settings import ProducerSettings
from tokenrelay.shared.wire.entries import Ended, Token

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tokenrelay.producer import Generation, ReadOnlyGeneration
    from tokenrelay.shared.wire.answer import Answer

Prompt = Annotated[str | None, typer.Argument(help="The prompt; - reads it from standard input.", metavar="PROMPT")]
RequestId = Annotated[str, typer.Argument(help="A request ID, as printed by submit.", metavar="ID")]
Choices = Annotated[int, typer.Option("--n", help="Number of choices, 1 to 16.", show_default=False, metavar="N")]
Local = Annotated[bool, typer.Option("--local", help="Start a temporary Redis and worker for this call.")]


def register(app: typer.Typer) -> None:
    """Add these commands to `app`."""
    for command in (ask, submit, follow, cancel, trace):
        add_command(app, command)


@with_options
def ask(prompt: Prompt = None, *, n: Choices = 1, local: Local = False, json: Json = False, **options: Any) -> None:
    """Submit a prompt and print the answer as it's generated. Ctrl-C cancels the request.

    Several choices are generated at once and printed one behind the other.
    """
    with _producer(local) as producer:
        generations = producer.submit_choices(_prompt(prompt), n=n, **options)
        with _cancel_on_interrupt(generations):
            failures: list[GenerationError] = []
            for number, generation in enumerate(generations):
                if sys.stderr.isatty():
                    write_message(f"request {generation.request_id}")
                if n > 1 and not json:
                    write_text(f"--- choice {number} ---\n")
                try:
                    _write_entries(generation, json=json)
                    if options.get("response_format"):
                        _raise_if_cut_off(generation.result())
                except GenerationError as error:
                    failures.append(error)
            if failures:
                raise failures[0]


@with_options
def submit(prompt: Prompt = None, *, json: Json = False, **options: Any) -> None:
    """Queue a request and print its ID."""
    with Producer() as producer:
        generation = producer.submit(_prompt(prompt), **options)
        if json:
            write_json({"request_id": generation.request_id, "queue": generation.status().queue})
        else:
            write_text(f"{generation.request_id}\n")


def follow(
    request_id: RequestId,
    after: Annotated[int, typer.Option(help="Start after this token.", metavar="N")] = 0,
    json: Json = False,
) -> None:
    """Print a request's answer, from the first token or after any other, until its end. Ctrl-C doesn't cancel it."""
    with Consumer() as consumer:
        _write_entries(consumer.get(request_id), after=after, json=json)


def cancel(request_id: RequestId, json: Json = False) -> None:
    """Cancel a request in any state. No-op for one that has ended."""
    with Producer() as producer:
        generation = producer.get(request_id)
        cancelled, state = generation.cancel(), generation.status().state
        if json:
            write_json({"request_id": request_id, "cancelled": cancelled, "state": state})
        else:
            write_text(f"{'cancelled' if cancelled else f'had already ended: {state}'}\n")


def trace(request_id: RequestId, json: Json = False) -> None:
    """Show each stage of a request with its data and Redis times, and how much earlier streaming showed the answer."""
    with connected_driver(ProducerSettings.from_environment().urls) as driver:
        write_trace(driver, request_id, json=json)


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
                write_message("starting a Redis and a worker …")
            url = stack.enter_context(LocalRedis()).url
            stack.enter_context(LocalWorker(url))
        yield stack.enter_context(Producer(url=url, streams_url=url))


@contextmanager
def _cancel_on_interrupt(generations: Sequence[Generation]) -> Iterator[None]:
    try:
        yield
    except (KeyboardInterrupt, BrokenPipeError):
        for generation in generations:
            generation.cancel()
        raise


def _raise_if_cut_off(answer: Answer) -> None:
    """Raises GenerationError for an answer that ended before it matched its format: a program can't read it."""
    if answer.finish_reason != "stop":
        more = {"length": "; --max-new-tokens gives it more room", "deadline": "; --deadline-s gives it more time"}
        hint = more.get(answer.finish_reason or "", "")
        raise GenerationError(f"the answer is cut off and doesn't match its format{hint}", answer=answer)


def _write_entries(generation: ReadOnlyGeneration, *, after: int = 0, json: bool) -> None:
    """Write the entries after token `after` as they arrive. Raises GenerationError if the request has no answer."""
    confidence = Confidence()
    for entry in generation.entries(after):
        if json:
            write_json({"request_id": generation.request_id, **entry_fields(entry)})
        elif isinstance(entry, Token | Ended):
            write_text(entry.text, confidence.style_of(entry))
    if not json:
        write_text("\n")
    if confidence.used and sys.stderr.isatty():
        write_message(legend())
    generation.result()
