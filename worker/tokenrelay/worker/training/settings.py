"""Settings of a training run, and its errors. Knows nothing of how training works."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from tokenrelay.shared.errors import TokenRelayError

_FROM_SCRATCH_LEARNING_RATE = 4e-3
_FINE_TUNING_LEARNING_RATE = 2e-4


class TrainingError(TokenRelayError):
    """The training can't be done as asked; the message says what to change."""


class TrainingDataError(TrainingError):
    """A conversation can't be learnt from; the message names the file, the line and what would be right."""


class TrainingSettings(BaseModel):
    """One training run. The defaults are the ones that the bundled model was made with."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: int = Field(default=5, ge=1, le=1000, description="Times that all training conversations are seen.")
    seed: int = Field(default=7, ge=0, lt=2**32, description="Picks the first weights and the order of the batches.")
    batch_size: int = Field(default=32, ge=1, le=4096, description="Conversations per step.")
    learning_rate: float | None = Field(
        default=None, gt=0, lt=1, description="The highest learning rate; by default it depends on `model`."
    )
    data: Path | None = Field(default=None, description="A JSONL file of conversations instead of the bundled corpus.")
    model: str | None = Field(default=None, description="A model to fine-tune (name or folder) instead of a new one.")
    device: Literal["cpu", "cuda"] = Field(default="cpu", description="Where to train.")

    @property
    def peak_learning_rate(self) -> float:
        """`learning_rate`, or the default for a new model or a trained one."""
        if self.learning_rate is not None:
            return self.learning_rate
        return _FINE_TUNING_LEARNING_RATE if self.model else _FROM_SCRATCH_LEARNING_RATE
