"""`python -m tokenrelay.worker.training`: the `train` command on its own."""

from __future__ import annotations

import typer

from tokenrelay.worker.training.command import train_command

if __name__ == "__main__":
    typer.run(train_command)
