"""The one place that makes engines: a name gives a loaded model and its engine.

A further engine is a folder beside `transformers` with a `load` of its own, and a line here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, assert_never

if TYPE_CHECKING:
    from tokenrelay.shared.settings import WorkerSettings
    from tokenrelay.worker.engine.contract import LoadedEngine

EngineName = Literal["transformers"]


def load_engine(name: EngineName, model: str, settings: WorkerSettings) -> LoadedEngine:
    """Load `model`, a folder or a Hub name. Raises ModelError. An engine's libraries are imported here, not before."""
    match name:
        case "transformers":
            from tokenrelay.worker.engine.transformers.loading import load

            return load(model, settings)
        case _:
            assert_never(name)
