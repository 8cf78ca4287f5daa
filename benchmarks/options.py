"""The options of `make bench`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class BenchOptions:
    """`quick` shrinks every load to a few seconds, to check that it runs; the results mean nothing."""

    model: str
    dtype: str
    rounds: int
    quick: bool
    serve_python: str
    vllm_python: str
    folder: Path
    """Folder for logs and server output."""
    shapes: tuple[str, ...] = ()
    """Only loads whose name contains one of these texts; empty: all."""
