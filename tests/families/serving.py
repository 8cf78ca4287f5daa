"""One folder through our engine, and what is right about it.

`refused` says why the start refuses the folder. What a served one gives is compared with the draw from the model's own
forward pass over the whole answer, token for token in float64: alone, beside other requests, resumed at several cuts.
A refused one is served unchecked as well, to see whether the refusal was right.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import torch

from tests.polled_engine import PolledEngine
from tokenrelay.shared.errors import EngineError
from tokenrelay.worker.engine.contract import EngineRequest, ModelError
from tokenrelay.worker.engine.transformers.kv_cache import EngineSettings
from tokenrelay.worker.engine.transformers.models import load_model
from tokenrelay.worker.engine.transformers.self_test import ordinary_ids
from tokenrelay.worker.sampling.params import SamplingParams
from tokenrelay.worker.sampling.sampler import encode_params, sample_scores

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tokenrelay.worker.engine.transformers.models import LoadedModel

LENGTHS: Final = (40, 1, 7, 70, 23)
"""Prompts, in tokens: over the tiny models' windows and pages, and one that a step of `BATCH_TOKENS` doesn't hold."""
BATCH_TOKENS: Final = 64
NEW_TOKENS: Final = 24
CUTS: Final = (1, 11, 23)
_TIMEOUT_S: Final = 60.0
_CACHE_TOKENS: Final = 2048


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one folder."""

    architecture: str
    refused: str = ""
    """Why the start refuses it; empty for a served one."""
    alone: bool = False
    together: bool = False
    resumed: bool = False
    note: str = ""
    unbuilt: str = ""
    """Why no folder could be made of it."""

    @property
    def right(self) -> bool:
        return self.alone and self.together and self.resumed

    @property
    def word(self) -> str:
        """`served`, `refused`, `unbuilt`, or what must not be: `wrong`, served and not right."""
        if self.unbuilt:
            return "unbuilt"
        if self.refused:
            return "refused"
        return "served" if self.right else "wrong"


def try_folder(folder: Path, architecture: str) -> Outcome:
    """Start it as a worker does, in float32, and judge its answers in float64."""
    refused = ""
    try:
        _served(folder)
    except ModelError as error:
        refused = str(error).replace(str(folder), "FOLDER")
    note = ""
    for dtype in ("float64", "float32"):  # some experts' matrix products know no float64
        try:
            return judge(load_model(folder, device="cpu", dtype=dtype), Outcome(architecture, refused, note=note))
        except Exception as error:  # noqa: BLE001  any: a served folder must not fail, a refused one may as it likes
            note = f"{dtype}: {type(error).__name__}: {error}".splitlines()[0]
    return Outcome(architecture, refused, note=note)


def _served(folder: Path) -> None:
    """Raises ModelError, as the worker's start does."""
    engine = _engine(load_model(folder, device="cpu", dtype="float32"))
    try:
        engine.prepare()
    finally:
        engine.stop()


def _engine(loaded: LoadedModel) -> PolledEngine:
    settings = EngineSettings(slots=8, kv_cache_tokens=_CACHE_TOKENS, max_batch_tokens=BATCH_TOKENS)
    return PolledEngine(loaded, settings)


def judge(loaded: LoadedModel, outcome: Outcome) -> Outcome:
    """Generate without the start's own test, and compare. Raises what the engine or the model raises."""
    engine = _engine(loaded)
    engine.begin()
    try:
        requests = _requests(loaded, engine.capabilities.context_tokens)
        together = _answers(engine, requests)
        alone: dict[str, tuple[int, ...]] = {}
        for request in requests:
            alone |= _answers(engine, [replace(request, engine_id=f"alone-{request.engine_id}")])
        cut = [
            replace(request, engine_id=f"{request.engine_id}-{cut}", emitted_ids=together[request.engine_id][:cut])
            for request in requests
            for cut in CUTS
        ]
        resumed = _answers(engine, cut)
    finally:
        engine.stop()
    model = loaded.model
    model.set_attn_implementation(engine._own_attention)
    expected = {request.engine_id: _wrong_at(loaded, request, together[request.engine_id]) for request in requests}
    lone = [_wrong_at(loaded, request, alone[f"alone-{request.engine_id}"]) for request in requests]
    return replace(
        outcome,
        alone=not any(lone),
        together=not any(expected.values()),
        resumed=all(
            request.emitted_ids + resumed[request.engine_id] == together[request.engine_id.rpartition("-")[0]]
            for request in cut
        ),
    )


def _requests(loaded: LoadedModel, context_tokens: int) -> list[EngineRequest]:
    ids = ordinary_ids(loaded.model)
    made = []
    for index, length in enumerate(LENGTHS):
        size = min(length, context_tokens - NEW_TOKENS)
        prompt = tuple(ids[(index * 37 + place * place * 3 + place * 7) % len(ids)] for place in range(size))
        temperature = 0.0 if index == 0 else 0.7
        sampling = SamplingParams(temperature, 0, 1.0, seed=index)
        made.append(EngineRequest(f"r{index}", prompt, (), NEW_TOKENS, sampling, ignore_eos=True))
    return made


def _answers(engine: PolledEngine, requests: Sequence[EngineRequest]) -> dict[str, tuple[int, ...]]:
    tokens: dict[str, list[int]] = {request.engine_id: [] for request in requests}
    for request in requests:
        engine.add(request)
    waiting, deadline = set(tokens), time.monotonic() + _TIMEOUT_S
    while waiting:
        if time.monotonic() > deadline:
            raise EngineError("no answer in time")
        for output in engine.outputs(1.0):
            tokens[output.engine_id] += output.token_ids
            if output.is_last:
                waiting.discard(output.engine_id)
    return {engine_id: tuple(given) for engine_id, given in tokens.items()}


def _wrong_at(loaded: LoadedModel, request: EngineRequest, answer: tuple[int, ...]) -> int:
    """The first token, from 1, that the model's own scores don't draw; 0 where they draw all."""
    begin = len(request.prompt_ids)
    with torch.no_grad():
        scores = loaded.model(input_ids=torch.tensor([[*request.prompt_ids, *answer[:-1]]]), use_cache=False).logits
    own = scores[0, begin - 1 :].float()
    params = encode_params([(request.sampling, index + 1) for index in range(len(answer))])
    drawn = sample_scores(own, params).argmax(dim=-1).tolist()
    return next((index + 1 for index, pair in enumerate(zip(drawn, answer, strict=True)) if pair[0] != pair[1]), 0)
