"""The engine's own requests before it starts: the warm-up, and the prompts of the self-test."""

from __future__ import annotations

import itertools
import time
from typing import TYPE_CHECKING, Final

from tokenrelay.shared.errors import EngineError
from tokenrelay.worker.engine.contract import EngineRequest
from tokenrelay.worker.engine.transformers.self_test import STEPS, Drawn
from tokenrelay.worker.sampling.params import SamplingParams

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from tokenrelay.worker.engine.contract import Engine
    from tokenrelay.worker.engine.output_queue import OutputQueue
    from tokenrelay.worker.engine.transformers.sampling_rows import PositionKeyedSampler

TIMEOUT_S: Final = 300.0
"""How long the engine may make no progress: the first CUDA kernels are compiled here."""
_GREEDY: Final = SamplingParams(temperature=0.0, top_k=0, top_p=1.0, seed=0)
_SAMPLED: Final = SamplingParams(temperature=1.0, top_k=2, top_p=0.9, seed=0)


class Trial:
    """Runs prompts together through an idle engine that delivers to `outputs`."""

    def __init__(self, engine: Engine, outputs: OutputQueue) -> None:
        self._engine = engine
        self._outputs = outputs
        self._numbers = itertools.count()

    def fill_slots(self) -> None:
        """Run prefill and decode of one request, then of as many as there are slots. Raises EngineError."""
        context_tokens = self._engine.capabilities.context_tokens
        prompt = tuple(0 for _ in range(max(min(8, context_tokens - 4), 1)))
        budget = min(3, context_tokens - len(prompt))
        for batch in sorted({1, self._engine.capabilities.slots}):
            self.draw([prompt] * batch, budget, _SAMPLED)

    def draw(
        self, prompts: Sequence[tuple[int, ...]], tokens: int, sampling: SamplingParams = _GREEDY
    ) -> dict[str, list[int]]:
        """The tokens of each prompt by engine ID, in the prompts' order; fewer where the engine failed a request.

        Raises EngineError where the engine dies, or makes no progress for TIMEOUT_S.
        """
        drawn: dict[str, list[int]] = {f"trial-{next(self._numbers)}": [] for _ in prompts}
        for engine_id, prompt in zip(drawn, prompts, strict=True):
            self._engine.add(EngineRequest(engine_id, prompt, (), tokens, sampling, ignore_eos=True))
        waiting, progress, moved_at = set(drawn), -1, 0.0
        while waiting:
            if progress != self._engine.progress:
                progress, moved_at = self._engine.progress, time.monotonic()
            if time.monotonic() - moved_at > TIMEOUT_S:
                raise EngineError(f"the engine's trial made no progress for {TIMEOUT_S:.0f} s")
            for output in self._outputs.get(1.0):
                drawn[output.engine_id] += output.token_ids
                if output.is_last:
                    waiting.discard(output.engine_id)
        return drawn


class EngineProbe:
    """The greedy tokens of prompts that run together, with the scores that each was drawn from."""

    def __init__(self, trial: Trial, sampler: PositionKeyedSampler) -> None:
        self._trial = trial
        self._sampler = sampler

    def __call__(self, prompts: Sequence[tuple[int, ...]]) -> list[Drawn]:
        """STEPS tokens of each prompt; fewer where the engine failed it. Raises EngineError where the engine dies."""
        scores: dict[tuple[str, int], torch.Tensor] = {}

        def keep(engine_id: str, position: int, row: torch.Tensor) -> None:
            scores[engine_id, position] = row.float().cpu().clone()

        self._sampler.observer = keep
        try:
            drawn = self._trial.draw(prompts, STEPS)
        finally:
            self._sampler.observer = None
        return [
            Drawn(tuple(tokens), tuple(scores.get((engine_id, index + 1)) for index in range(len(tokens))))
            for engine_id, tokens in drawn.items()
        ]
