"""The command `tokenrelay load`: its options, its progress bar, and what Ctrl-C does to a run."""

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
from tokenrelay.cli.load.report import drawn, report
from tokenrelay.cli.load.run import LoadRun
from tokenrelay.cli.load.workload import Range, Workload, prompts_of
from tokenrelay.cli.output import print_rich, tell, write_json
from tokenrelay.producer import AsyncProducer
from tokenrelay.producer._core.fitness import check_redis
from tokenrelay.producer._core.planning import plan_request
from tokenrelay.producer._core.rounds import AsyncDriver
from tokenrelay.shared.redis.connections import connect_async
from tokenrelay.shared.settings import ProducerSettings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tokenrelay.cli.load.report import Report

_LOOK_S: Final = 0.25
_RATE_OVER: Final = 8
"""Looks over which the bar's tokens per second are taken."""


def load(
    rate: Annotated[float, typer.Option(help="Requests per second, on average.", metavar="R")],
    duration: Annotated[float, typer.Option(help="Seconds over which they arrive.", metavar="S")],
    prompt_tokens: Annotated[
        str, typer.Option(help="Prompt lengths, in words and marks.", metavar="LOW:HIGH")
    ] = "4:64",
    prompts: Annotated[
        Path | None, typer.Option(help="Draw prompts from this file instead, one a line.", metavar="FILE")
    ] = None,
    max_new_tokens: Annotated[str, typer.Option(help="Answer limits, in tokens.", metavar="LOW:HIGH")] = "8:128",
    ignore_eos: Annotated[bool, typer.Option("--ignore-eos", help="Answers go on up to their limit.")] = False,
    model: Annotated[str | None, typer.Option(help="The model to ask.", metavar="NAME")] = None,
    deadline_s: Annotated[float, typer.Option(help="Each request's deadline.", metavar="S")] = 120.0,
    seed: Annotated[int | None, typer.Option(min=0, help="Draws the same load again.", metavar="N")] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object instead of the table.")] = False,
    plot: Annotated[Path | None, typer.Option(help="Draw the curves to this file too.", metavar="FILE.png")] = None,
) -> None:
    """Put a running system under load: Poisson arrivals of mixed lengths that wait for nobody.

    Ctrl-C submits no more, cancels what is open, and prints what was measured.
    """
    settings = ProducerSettings.from_environment()
    workload = Workload(
        rate=rate,
        duration_s=duration,
        max_new_tokens=Range.parse("--max-new-tokens", max_new_tokens),
        prompt_tokens=Range.parse("--prompt-tokens", prompt_tokens),
        prompts=prompts_of(prompts) if prompts else (),
        seed=secrets.randbelow(2**32) if seed is None else seed,
    )
    options: dict[str, Any] = {"ignore_eos": ignore_eos, "deadline_s": deadline_s}
    options |= {"model": model} if model else {}
    plan_request({"prompt": "x", "max_new_tokens": workload.max_new_tokens.high, **options}, settings)
    if plot:
        check_plot(plot)
    with _warned_once():
        found = asyncio.run(_run(workload, options, settings))
    if plot:
        write_plot(found, plot)
    if json:
        write_json(found.as_json())
    else:
        print_rich(lambda console: console.print(drawn(found)))
    if found.stopped:
        raise KeyboardInterrupt


@contextmanager
def _warned_once() -> Iterator[None]:
    """Tells the first warning alone: each request of a model that nobody serves would have one."""
    told: list[object] = []
    before = warnings.showwarning

    def show(message: object, *_: object, **__: object) -> None:
        if not told:
            told.append(message)
            tell(f"tokenrelay: {message} (said once)")

    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = before


async def _run(workload: Workload, options: dict[str, Any], settings: ProducerSettings) -> Report:
    async with connect_async(settings.redis_url.get_secret_value()) as client:
        await AsyncDriver(client).run(check_redis())
        run = LoadRun(AsyncProducer(connection=client, settings=settings), workload.arrivals(), options)
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
    """The first Ctrl-C stops the run in good order; the second ends the process as any other would."""
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
    """The bar, on stderr where that is a terminal, until the run is over."""
    console = Console(stderr=True, highlight=False)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[told]}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("submitting", total=duration_s, told="")
        counts = [0]
        while not run.over:
            counts = [*counts, run.tokens][-_RATE_OVER - 1 :]
            rate = (counts[-1] - counts[0]) / (_LOOK_S * max(1, len(counts) - 1))
            what = "cancelling" if run.stopped else "submitting" if run.elapsed_s < duration_s else "finishing"
            done = len(run.outcomes) - run.open
            told = f"{run.open:,} in flight, {done:,} done, {rate:,.0f} tokens/s"
            progress.update(task, description=what, completed=min(run.elapsed_s, duration_s), told=told)
            await asyncio.sleep(_LOOK_S)
