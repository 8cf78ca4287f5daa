"""What `make bench` was told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class BenchOptions:
    """`quick` shrinks every load to a few seconds: it shows that the benchmark runs, and no figure."""

    model: str
    dtype: str
    rounds: int
    quick: bool
    serve_python: str
    vllm_python: str
    folder: Path
    """For logs and for what the servers write."""
    shapes: tuple[str, ...] = ()
    """Only loads whose name contains one of these texts; all where there are none."""
