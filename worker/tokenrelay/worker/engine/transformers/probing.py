"""Prompts through an engine, with the scores that each token was drawn from: what the self-test compares."""

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
    from tokenrelay.worker.engine.transformers.sampling_rows import PositionKeyedSampler

TIMEOUT_S: Final = 300.0  # first CUDA kernels are compiled here
_GREEDY: Final = SamplingParams(temperature=0.0, top_k=0, top_p=1.0, seed=0)


class EngineProbe:
    """Runs prompts together through a started engine that has nothing else to do."""

    def __init__(self, engine: Engine, sampler: PositionKeyedSampler) -> None:
        self._engine = engine
        self._sampler = sampler
        self._numbers = itertools.count()

    def __call__(self, prompts: Sequence[tuple[int, ...]]) -> list[Drawn]:
        """The greedy tokens of each prompt, and their scores; fewer where the engine gave one up.

        Raises EngineError where the engine dies of it.
        """
        scores: dict[tuple[str, int], torch.Tensor] = {}

        def keep(engine_id: str, position: int, row: torch.Tensor) -> None:
            scores[engine_id, position] = row.float().cpu().clone()

        self._sampler.observer = keep
        try:
            drawn = self._draw(prompts)
        finally:
            self._sampler.observer = None
        return [
            Drawn(tuple(tokens), tuple(scores.get((engine_id, index + 1)) for index in range(len(tokens))))
            for engine_id, tokens in drawn.items()
        ]

    def _draw(self, prompts: Sequence[tuple[int, ...]]) -> dict[str, list[int]]:
        drawn: dict[str, list[int]] = {f"self-test-{next(self._numbers)}": [] for _ in prompts}
        for engine_id, prompt in zip(drawn, prompts, strict=True):
            self._engine.add(EngineRequest(engine_id, prompt, (), STEPS, _GREEDY, ignore_eos=True))
        waiting, deadline = set(drawn), time.monotonic() + TIMEOUT_S
        while waiting:
            if time.monotonic() > deadline:
                raise EngineError(f"the self-test didn't finish in {TIMEOUT_S:.0f} s")
            for output in self._engine.outputs(1.0):
                drawn[output.engine_id] += output.token_ids
                if output.is_last:
                    waiting.discard(output.engine_id)
        return drawn
