"""The `train` command: options in, progress and the training trace on the console out.

Owns the output; training itself is trainer's. Imports torch only when called, so that the CLI starts fast.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tokenrelay.worker.training.report.trace import CURVE_FILE, EpochTrace, StepDone, bar
from tokenrelay.worker.training.settings import TrainingError, TrainingSettings

if TYPE_CHECKING:
    from tokenrelay.worker.training.report.trace import TrainingTrace


class Device(StrEnum):
    """Where to train."""

    CPU = "cpu"
    CUDA = "cuda"


_DEFAULTS = TrainingSettings()
_DEFAULT_DEVICE = Device(_DEFAULTS.device)


def train_command(
    out: Annotated[Path, typer.Option(help="The folder to write the model into.")] = Path("weather-model"),
    data: Annotated[Path | None, typer.Option(help="A JSONL file of conversations; else the bundled corpus.")] = None,
    model: Annotated[str | None, typer.Option(help="A model to fine-tune (name or folder); else a new one.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same weights.")] = _DEFAULTS.seed,
    epochs: Annotated[int, typer.Option(min=1, help="Times that the data is seen.")] = _DEFAULTS.epochs,
    device: Annotated[Device, typer.Option(help="Where to train.")] = _DEFAULT_DEVICE,
) -> None:
    """Train the weather-talk model, or fine-tune another one, and show how it learns."""
    console = Console()
    settings = TrainingSettings(data=data, model=model, seed=seed, epochs=epochs, device=device.value)
    console.print(
        f"Training {escape(model or 'a new model')} on {escape(str(data or 'the bundled weather talk'))}: "
        f"{epochs} epochs, seed {seed}, {device.value}.\n"
        "Stars and loss: held-out answers, nats per token; accuracy: the share of right next tokens in them.",
        highlight=False,
        soft_wrap=True,
    )
    try:
        trace = _run(settings, out, console)
    except TrainingError as error:
        Console(stderr=True).print(f"[red]error:[/] {escape(error.message)}", highlight=False)
        raise typer.Exit(1) from error
    _summarise(trace, out, console)


def _run(settings: TrainingSettings, out: Path, console: Console) -> TrainingTrace:
    # torch and transformers take seconds to import, and `tokenrelay-worker --help` needs neither.
    from tokenrelay.worker.training.trainer import train

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        steps = progress.add_task("steps", total=None)
        first_loss: list[float] = []

        def report(event: StepDone | EpochTrace) -> None:
            if isinstance(event, StepDone):
                progress.update(steps, completed=event.step, total=event.steps)
                return
            first_loss.append(event.loss)
            progress.console.print(epoch_lines(event, first_loss[0]), highlight=False, markup=False, soft_wrap=True)

        return train(settings, out=out, report=report)


def epoch_lines(epoch: EpochTrace, first_loss: float) -> str:
    """One epoch as lines of text: bar, loss, accuracy, the observation, and the model's answer."""
    stars = bar(epoch.loss, first_loss)
    return (
        f"Epoch {epoch.epoch} | {stars} ({epoch.loss:.1f})\n"
        f"        | accuracy {epoch.accuracy:.2f}; {epoch.observation}\n"
        f"        | says: {epoch.answer}"
    )


def _summarise(trace: TrainingTrace, out: Path, console: Console) -> None:
    size_mb = sum(file.stat().st_size for file in out.glob("*.safetensors")) / 1e6
    last = trace.epochs[-1]
    console.print(
        f"Held-out: loss {last.loss:.2f}, accuracy {last.accuracy:.3f} over {trace.held_out_answer_tokens} "
        f"answer tokens of {trace.held_out_conversations} conversations that were not learnt from.\n"
        f"Model: {escape(str(out))} ({trace.parameters:,} parameters, {size_mb:.1f} MB, "
        f"{trace.seconds:.0f} s of CPU time)\n"
        f"Curve: {escape(str(out / CURVE_FILE))}",
        highlight=False,
        soft_wrap=True,
    )
