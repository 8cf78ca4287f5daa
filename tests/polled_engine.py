"""The default engine for tests that take its outputs themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenrelay.worker.engine.output_queue import OutputQueue
from tokenrelay.worker.engine.transformers.batching import TransformersEngine

if TYPE_CHECKING:
    from tokenrelay.worker.engine.contract import EngineOutput
    from tokenrelay.worker.engine.transformers.kv_cache import EngineSettings
    from tokenrelay.worker.engine.transformers.models import LoadedModel


class PolledEngine(TransformersEngine):
    """Delivers to a queue of its own, from `begin` on."""

    def __init__(self, loaded: LoadedModel, settings: EngineSettings | None = None) -> None:
        super().__init__(loaded, settings)
        self._queue = OutputQueue()

    def begin(self) -> None:
        """Start without a warm-up or a check."""
        self.start(self._queue.deliver)

    def outputs(self, timeout_s: float) -> list[EngineOutput]:
        """As `OutputQueue.get`."""
        return self._queue.get(timeout_s)
