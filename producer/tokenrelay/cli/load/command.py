"""The command `tokenrelay load`: options, progress bar, and Ctrl-C."""

from __future__ import annotations

import asyncio
import secrets
import signal
import sys
import warnings
from contextlib import contextmanager
from pathlib import Path  # noqa: TC003 - typer reads the annotations
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from tokenrelay.cli.load.chart import check_plot, write_plot
from tokenrelay.cli.load.report import render, report
from tokenrelay.cli.load.run import LoadRun
from tokenrelay.cli.load.workload import Range, Workload, read_prompts
from tokenrelay.cli.terminal.output import print_rich, write_json, write_message
from tokenrelay.producer import AsyncProducer
from tokenrelay.producer._core.drivers import check_servers
from tokenrelay.producer._core.planning import plan_request
from tokenrelay.shared.settings import ProducerSettings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tokenrelay.cli.load.report import Report

_UPDATE_S: Final = 0.25
_RATE_UPDATES: Final = 8
"""Updates over which the progress bar's token rate is averaged."""


def load(
    rate: Annotated[float, typer.Option(help="Requests per second, on average.", metavar="R")],
    duration: Annotated[float, typer.Option(help="Seconds during which requests are submitted.", metavar="S")],
    prompt_tokens: Annotated[
        str, typer.Option(help="Prompt lengths, in words and punctuation marks.", metavar="LOW:HIGH")
    ] = "4:64",
    prompts: Annotated[
        Path | None, typer.Option(help="Draw prompts from this file, one per line.", metavar="FILE")
    ] = None,
    max_new_tokens: Annotated[str, typer.Option(help="Answer limits, in tokens.", metavar="LOW:HIGH")] = "8:128",
    ignore_eos: Annotated[bool, typer.Option("--ignore-eos", help="Generate every answer up to its limit.")] = False,
    model: Annotated[str | None, typer.Option(help="The model.", metavar="NAME")] = None,
    deadline_s: Annotated[float, typer.Option(help="Each request's deadline.", metavar="S")] = 120.0,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of the workload, to repeat it.", metavar="N")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of the table.")] = False,
    plot: Annotated[Path | None, typer.Option(help="Also plot the curves to this file.", metavar="FILE.png")] = None,
) -> None:
    """Generate load: an open loop of Poisson arrivals with mixed lengths.

    Ctrl-C stops submitting, cancels open requests, and prints the report so far.
    """
    settings = ProducerSettings.from_environment()
    workload = Workload(
        rate=rate,
        duration_s=duration,
        max_new_tokens=Range.parse("--max-new-tokens", max_new_tokens),
        prompt_tokens=Range.parse("--prompt-tokens", prompt_tokens),
        prompts=read_prompts(prompts) if prompts else (),
        seed=secrets.randbelow(2**32) if seed is None else seed,
    )
    options: dict[str, Any] = {"ignore_eos": ignore_eos, "deadline_s": deadline_s}
    options |= {"model": model} if model else {}
    plan_request({"prompt": "x", "max_new_tokens": workload.max_new_tokens.high, **options}, settings)
    if plot:
        check_plot(plot)
    check_servers(settings.urls)
    with _warn_once():
        found = asyncio.run(_run(workload, options, settings))
    if plot:
        write_plot(found, plot)
    if json:
        write_json(found.as_json())
    else:
        print_rich(lambda console: console.print(render(found)))
    if found.stopped:
        raise KeyboardInterrupt


@contextmanager
def _warn_once() -> Iterator[None]:
    """Print only the first warning: for a model without workers, every request would warn."""
    shown: list[object] = []
    before = warnings.showwarning

    def show(message: object, *_: object, **__: object) -> None:
        if not shown:
            shown.append(message)
            write_message(f"tokenrelay: {message} (shown once)")

    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = before


async def _run(workload: Workload, options: dict[str, Any], settings: ProducerSettings) -> Report:
    async with AsyncProducer(settings=settings) as producer:
        run = LoadRun(producer, workload.arrivals(), options)
        with _interrupted(run):
            watching = asyncio.create_task(_show(run, workload.duration_s))
            await run.run()
            await watching
    return report(
        run.outcomes,
        run.errors,
        seed=workload.seed,
        rate=workload.rate,
        window_s=min(workload.duration_s, run.stopped_s or workload.duration_s),
        stopped=run.stopped,
    )


@contextmanager
def _interrupted(run: LoadRun) -> Iterator[None]:
    """Stop the run on the first Ctrl-C; the second one exits."""
    loop = asyncio.get_running_loop()

    def stop() -> None:
        run.stop()
        loop.remove_signal_handler(signal.SIGINT)

    loop.add_signal_handler(signal.SIGINT, stop)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGINT)


async def _show(run: LoadRun, duration_s: float) -> None:
    """Show a progress bar on stderr, if that is a terminal, until the run ends."""
    console = Console(stderr=True, highlight=False)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[counts]}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("submitting", total=duration_s, counts="")
        tokens = [0]
        while not run.over:
            tokens = [*tokens, run.tokens][-_RATE_UPDATES - 1 :]
            rate = (tokens[-1] - tokens[0]) / (_UPDATE_S * max(1, len(tokens) - 1))
            what = "cancelling" if run.stopped else "submitting" if run.elapsed_s < duration_s else "finishing"
            done = len(run.outcomes) - run.open
            counts = f"{run.open:,} in flight, {done:,} done, {rate:,.0f} tokens/s"
            progress.update(task, description=what, completed=min(run.elapsed_s, duration_s), counts=counts)
            await asyncio.sleep(_UPDATE_S)
