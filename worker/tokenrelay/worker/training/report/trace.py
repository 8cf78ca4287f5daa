"""What a training run reports: its progress, and a trace of each epoch in numbers and words.

Plain data; knows nothing of models.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

TRACE_FILE = "trace.json"
CURVE_FILE = "curve.svg"

_BAR_WIDTH = 20
_PACES = ((0.5, "learning fast"), (0.2, "learning steadily"), (0.05, "slowing down"), (0.0, "levelling off"))


@dataclass(frozen=True, slots=True)
class StepDone:
    """One optimiser step of `steps` is done."""

    step: int
    steps: int


@dataclass(frozen=True, slots=True)
class EpochTrace:
    """One epoch. loss and accuracy are the held-out ones after it, train_loss is the mean during it.

    answer: what the model says to the trace's question after this epoch, its most likely token each time.
    """

    epoch: int
    train_loss: float
    loss: float
    accuracy: float
    observation: str
    answer: str


@dataclass(frozen=True, slots=True)
class TrainingTrace:
    """A whole training run. loss_before and accuracy_before are the held-out ones of the untrained weights.

    seconds: CPU time, which doesn't depend on what else the machine does.
    """

    seed: int
    data: str
    model: str
    parameters: int
    vocabulary: int
    train_conversations: int
    held_out_conversations: int
    held_out_answer_tokens: int
    loss_before: float
    accuracy_before: float
    question: str
    epochs: tuple[EpochTrace, ...]
    seconds: float

    def write(self, path: Path) -> None:
        """Write the trace to `path` as JSON."""
        path.write_text(json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_trace(path: Path) -> TrainingTrace:
    """The trace that `TrainingTrace.write` wrote to `path`."""
    value = json.loads(path.read_text(encoding="utf-8"))
    return TrainingTrace(**{**value, "epochs": tuple(EpochTrace(**epoch) for epoch in value["epochs"])})


def bar(loss: float, first_loss: float) -> str:
    """Stars for `loss`, 20 for the first epoch's; one at least, so that a bar is always visible."""
    return "*" * max(1, min(_BAR_WIDTH, round(_BAR_WIDTH * loss / first_loss)))


def observe(loss: float, accuracy: float, loss_before: float, accuracy_before: float, train_loss: float) -> str:
    """An epoch in words: how much the loss fell, and whether the model generalises to held-out questions."""
    points = 100 * (accuracy - accuracy_before)
    if loss >= loss_before:
        return f"unlearning: the loss rose by {loss - loss_before:.2f}; fewer epochs would do better"
    fall = (loss_before - loss) / loss_before
    pace = next(words for least, words in _PACES if fall >= least)
    change = (
        f"the loss fell by {100 * fall:.0f} %, accuracy {'rose' if points >= 0 else 'fell'} by {abs(points):.1f} points"
    )
    gap = "; known questions are answered better than new ones" if loss > 1.25 * train_loss else ""
    return f"{pace}: {change}{gap}"
