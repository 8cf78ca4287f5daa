"""A queue between an engine and one thread that drives it: the warm-up, a benchmark, a test."""

from __future__ import annotations

from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

from tokenrelay.worker.engine.contract import EngineDied

if TYPE_CHECKING:
    from tokenrelay.worker.engine.contract import EngineMessage, EngineOutput


class OutputQueue:
    """`start` an engine with `deliver`; one thread takes the outputs with `get`."""

    def __init__(self) -> None:
        self._messages: SimpleQueue[EngineMessage] = SimpleQueue()
        self._death: EngineDied | None = None
        self.deliver = self._messages.put

    def get(self, timeout_s: float) -> list[EngineOutput]:
        """All outputs so far, waiting up to `timeout_s` for the first. Raises what the engine died of, after the last
        outputs."""
        outputs: list[EngineOutput] = []
        for message in self._received(timeout_s):
            if isinstance(message, EngineDied):
                self._death = message
            else:
                outputs += message.outputs
        if self._death is not None and not outputs:
            raise self._death.error
        return outputs

    def _received(self, timeout_s: float) -> list[EngineMessage]:
        try:
            first = self._messages.get(timeout=0.0 if self._death else timeout_s)
        except Empty:
            return []
        # Only what is queued now: an engine that is faster than its reader never lets the queue run empty.
        return [first, *(self._messages.get() for _ in range(self._messages.qsize()))]
