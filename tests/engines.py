"""Engines for tests: a deterministic counting engine without torch."""

from __future__ import annotations

import math
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tokenrelay.shared.errors import EngineError
from tokenrelay.worker.engine.contract import (
    INVALID_LOGITS,
    CacheUse,
    Capabilities,
    EngineDied,
    EngineOutput,
    EngineOutputs,
    EngineRequest,
)
from tokenrelay.worker.sampling.params import DRAW_OPTIONS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenrelay.worker.engine.contract import Deliver


SICK_AFTER = 3
ALL_OPTIONS = DRAW_OPTIONS | {"ignore_eos"}


def counted_token(seed: int, position: int, vocabulary: int) -> int:
    """Token `position` (from 1) of a request with this seed: a pure function, so a resume must repeat it."""
    return (seed * 1_000_003 + position * 7_919 + (seed ^ position) * 31) % vocabulary


@dataclass(slots=True)
class _Counting:
    request: EngineRequest
    next_position: int
    prefill_steps: int


class CountingEngine:
    """`Engine` whose tokens are a pure function of (seed, position).

    Each step takes `step_delay_s` and gives one token to each of the first `slots` requests, in the order they came.
    A token that is `eos_token_id` ends the request as `stop`. Where `chunk_tokens` is given, a prompt is prefilled so
    many tokens a step. A request of `sick_seed` is given up after SICK_AFTER tokens. After `fail_after` tokens, all
    requests together, the engine dies as the real one does: what came before is delivered, then its death, and `add`
    raises EngineError.
    """

    def __init__(
        self,
        *,
        vocabulary: int = 1000,
        slots: int = 8,
        context_tokens: int = 4096,
        step_delay_s: float = 0.001,
        eos_token_id: int | None = None,
        fail_after: int | None = None,
        sick_seed: int | None = None,
        chunk_tokens: int | None = None,
        options: frozenset[str] = ALL_OPTIONS,
    ) -> None:
        self.capabilities = Capabilities(
            slots, context_tokens, vocabulary + 1, options, device="none", dtype="exact integers"
        )
        self._vocabulary = vocabulary
        self._step_delay_s = step_delay_s
        self._eos_token_id = eos_token_id
        self._tokens_left = fail_after
        self._sick_seed = sick_seed
        self._chunk_tokens = chunk_tokens
        self._requests: dict[str, _Counting] = {}
        self._changed = threading.Condition()
        self._deliver: Deliver | None = None
        self._death: BaseException | None = None
        self.progress = 0

    def prepare(self) -> None:
        """Nothing is cold here."""

    def start(self, deliver: Deliver) -> None:
        """Let requests in."""
        self._deliver = deliver
        threading.Thread(target=self._run, args=(deliver,), name="counting-engine", daemon=True).start()

    def stop(self) -> None:
        """Let no more requests in and give nothing more out."""
        with self._changed:
            self._death = self._death or EngineError("the engine was stopped")
            self._requests.clear()
            self._changed.notify_all()

    def add(self, request: EngineRequest) -> None:
        """Begin a request. Raises EngineError if the engine is dead."""
        with self._changed:
            if self._deliver is None or self._death is not None:
                raise EngineError(f"the engine isn't running: {self._death}")
            if request.engine_id in self._requests:
                raise ValueError(f"engine_id {request.engine_id!r} is in the engine already")
            prefill_steps = math.ceil(len(request.prompt_ids) / self._chunk_tokens) - 1 if self._chunk_tokens else 0
            self._requests[request.engine_id] = _Counting(request, len(request.emitted_ids) + 1, prefill_steps)
            self._changed.notify_all()

    def cancel(self, engine_id: str) -> None:
        """Free the request's slot."""
        with self._changed:
            self._requests.pop(engine_id, None)

    def cache_use(self) -> CacheUse | None:
        """There is none."""
        return None

    def _run(self, deliver: Deliver) -> None:
        try:
            while self._death is None:
                outputs = self.step()
                if outputs and self._death is None:
                    deliver(EngineOutputs(tuple(outputs)))
        except BaseException as error:  # noqa: BLE001  delivered
            with self._changed:
                stopped, self._death = self._death is not None, self._death or error
            if not stopped:
                deliver(EngineDied(error))

    def step(self) -> list[EngineOutput]:
        """Wait for requests, then for the step's time; its outputs. Runs in the engine's thread, which dies of whatever
        it raises."""
        self.await_requests()
        time.sleep(self._step_delay_s)
        return self.advance()

    def await_requests(self) -> None:
        """Wait until there are requests, or the engine ends."""
        with self._changed:
            self._changed.wait_for(lambda: self._requests or self._death)

    def advance(self) -> list[EngineOutput]:
        """A token for each of the first requests, at once."""
        with self._changed:
            self.progress += 1
            outputs: list[EngineOutput] = []
            for engine_id in list(self._requests)[: self.capabilities.slots]:
                if self._tokens_left == 0:
                    break
                if self._requests[engine_id].prefill_steps:
                    self._requests[engine_id].prefill_steps -= 1
                else:
                    outputs.append(self._step(engine_id))
            if not outputs and self._tokens_left == 0:
                raise EngineError("the engine died: fail_after tokens were given out")
            return outputs

    def _step(self, engine_id: str) -> EngineOutput:
        counting = self._requests[engine_id]
        request, position = counting.request, counting.next_position
        if position > request.max_new_tokens:
            del self._requests[engine_id]
            return EngineOutput(engine_id, (), "length")
        if request.sampling.seed == self._sick_seed and position == SICK_AFTER + 1:
            del self._requests[engine_id]
            return EngineOutput(engine_id, (), None, INVALID_LOGITS)
        if self._tokens_left is not None:
            self._tokens_left -= 1
        token = self.token(request, position)
        if token == self._eos_token_id and not request.ignore_eos:
            del self._requests[engine_id]
            return EngineOutput(engine_id, (), "stop")
        if token in request.sampling.stop_token_ids:
            del self._requests[engine_id]
            return EngineOutput(engine_id, (token,) if token in request.kept_end_ids else (), "stop")
        counting.next_position += 1
        if position == request.max_new_tokens and self._tokens_left != 0:  # a dying engine ends nothing
            del self._requests[engine_id]
            return EngineOutput(engine_id, (token,), "length")
        return EngineOutput(engine_id, (token,), None)

    def token(self, request: EngineRequest, position: int) -> int:
        """Token `position` of a request, from 1."""
        return counted_token(request.sampling.seed, position, self._vocabulary)


class ScriptedEngine(CountingEngine):
    """Reads `script` out to every request, from the token at which it is asked to continue."""

    def __init__(self, script: Sequence[int], **settings: Any) -> None:
        super().__init__(**settings)
        self._script = script

    def token(self, request: EngineRequest, position: int) -> int:
        return self._script[position - 1]
