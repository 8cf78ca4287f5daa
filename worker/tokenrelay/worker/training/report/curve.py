"""The learning curve as a picture. Knows the trace only."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

if TYPE_CHECKING:
    from pathlib import Path

    from tokenrelay.worker.training.report.trace import TrainingTrace

_LOSS_COLOR = "#c2410c"
_ACCURACY_COLOR = "#0f766e"


def write_curve(trace: TrainingTrace, path: Path) -> None:
    """Draw held-out loss and accuracy over the epochs (0 is before training) into `path`, an SVG."""
    epochs = [0, *(epoch.epoch for epoch in trace.epochs)]
    # A Figure of its own, not pyplot's: pyplot keeps figures alive and looks for a display.
    figure = Figure(figsize=(7, 4), layout="constrained")
    left = figure.subplots()
    right = left.twinx()
    loss = [trace.loss_before, *(epoch.loss for epoch in trace.epochs)]
    accuracy = [trace.accuracy_before, *(epoch.accuracy for epoch in trace.epochs)]
    left.plot(epochs, loss, color=_LOSS_COLOR, marker="o")
    right.plot(epochs, accuracy, color=_ACCURACY_COLOR, marker="s")
    left.set(xlabel="epoch", ylim=(0, None), title=f"Held-out answers of {trace.model}, seed {trace.seed}")
    left.set_ylabel("loss (nats per token)", color=_LOSS_COLOR)
    right.set(ylim=(0, 1.02))
    right.set_ylabel("next-token accuracy", color=_ACCURACY_COLOR)
    left.xaxis.set_major_locator(MaxNLocator(integer=True))
    left.grid(visible=True, alpha=0.25)
    left.spines["top"].set_visible(False)
    right.spines["top"].set_visible(False)
    # Without salt and date the same trace gives the same file.
    with mpl.rc_context({"svg.hashsalt": "tokenrelay"}):
        figure.savefig(path, format="svg", metadata={"Date": None})
