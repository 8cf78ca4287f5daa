"""Engines for tests: a deterministic counting engine without torch."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

from tokenrelay.shared.errors import EngineError
from tokenrelay.worker.engine.contract import EngineOutput, EngineRequest


def counted_token(seed: int, position: int, vocabulary: int) -> int:
    """Token `position` (from 1) of a request with this seed: a pure function, so a resume must give it again."""
    return (seed * 1_000_003 + position * 7_919 + (seed ^ position) * 31) % vocabulary


@dataclass(slots=True)
class _Counting:
    request: EngineRequest
    next_position: int


class CountingEngine:
    """`Engine` whose tokens are a pure function of (seed, position).

    Each step takes `step_delay_s` and gives one token to each of the first `slots` requests, in the order they came.
    A token that is `eos_token_id` ends the request as `stop`. After `fail_after` tokens, all requests together, it dies
    as the real one does: what came before is given out, then `outputs` and `add` raise EngineError.
    """

    def __init__(
        self,
        *,
        vocabulary: int = 1000,
        slots: int = 8,
        context_tokens: int = 4096,
        step_delay_s: float = 0.0,
        eos_token_id: int | None = None,
        fail_after: int | None = None,
    ) -> None:
        self.slots = slots
        self.context_tokens = context_tokens
        self._vocabulary = vocabulary
        self._step_delay_s = step_delay_s
        self._eos_token_id = eos_token_id
        self._tokens_left = fail_after
        self._requests: dict[str, _Counting] = {}
        self._changed = threading.Condition()
        self._running = False
        self.progress = 0

    def start(self) -> None:
        """Let requests in."""
        self._running = True

    def warm_up(self) -> None:
        """Nothing is cold here."""

    def stop(self) -> None:
        """Let no more requests in and give nothing more out."""
        with self._changed:
            self._running = False
            self._requests.clear()
            self._changed.notify_all()

    def add(self, request: EngineRequest) -> None:
        """Begin a request. Raises EngineError if the engine is dead."""
        with self._changed:
            self._check_alive()
            if request.engine_id in self._requests:
                raise ValueError(f"engine_id {request.engine_id!r} is in the engine already")
            self._requests[request.engine_id] = _Counting(request, len(request.emitted_ids) + 1)
            self._changed.notify_all()

    def cancel(self, engine_id: str) -> None:
        """Free the request's slot."""
        with self._changed:
            self._requests.pop(engine_id, None)

    def outputs(self, timeout_s: float) -> list[EngineOutput]:
        """One step's tokens; an empty list where no request came in `timeout_s`. Raises EngineError if dead."""
        with self._changed:
            self._check_alive()
            if not self._changed.wait_for(lambda: self._requests or not self._running, timeout_s):
                return []
        time.sleep(self._step_delay_s)
        with self._changed:
            self.progress += 1
            outputs: list[EngineOutput] = []
            for engine_id in list(self._requests)[: self.slots]:
                if self._tokens_left == 0:
                    break
                outputs.append(self._step(engine_id))
            if not outputs:
                self._check_alive()
            return outputs

    def _step(self, engine_id: str) -> EngineOutput:
        counting = self._requests[engine_id]
        request, position = counting.request, counting.next_position
        if position > request.max_new_tokens:
            del self._requests[engine_id]
            return EngineOutput(engine_id, (), "length")
        if self._tokens_left is not None:
            self._tokens_left -= 1
        token = counted_token(request.sampling.seed, position, self._vocabulary)
        if token == self._eos_token_id and not request.ignore_eos:
            del self._requests[engine_id]
            return EngineOutput(engine_id, (), "stop")
        counting.next_position += 1
        if position == request.max_new_tokens:
            del self._requests[engine_id]
            return EngineOutput(engine_id, (token,), "length")
        return EngineOutput(engine_id, (token,), None)

    def _check_alive(self) -> None:
        if self._tokens_left == 0:
            raise EngineError("the engine died: fail_after tokens were given out")
        if not self._running:
            raise EngineError("the engine isn't running")
