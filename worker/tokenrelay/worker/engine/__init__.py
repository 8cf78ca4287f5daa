"""Token generation: token IDs in, token IDs out; no Redis, no RQ, no text.

The contract (`Engine` and its records) imports no torch; the default engine and `load_model` do, when first asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from tokenrelay.worker.engine.contract import (
    INVALID_LOGITS,
    Engine,
    EngineOutput,
    EngineRequest,
    FinishReason,
    ModelError,
    RequestFailure,
    SamplingParams,
    admit,
)
from tokenrelay.worker.engine.kv_cache import CacheUse, EngineSettings

if TYPE_CHECKING:
    from tokenrelay.worker.engine.batching import TransformersEngine
    from tokenrelay.worker.engine.models import LoadedModel, load_model

__all__ = [
    "INVALID_LOGITS",
    "CacheUse",
    "Engine",
    "EngineOutput",
    "EngineRequest",
    "EngineSettings",
    "FinishReason",
    "LoadedModel",
    "ModelError",
    "RequestFailure",
    "SamplingParams",
    "TransformersEngine",
    "admit",
    "load_model",
]

_WITH_TORCH = {
    "LoadedModel": "tokenrelay.worker.engine.models",
    "TransformersEngine": "tokenrelay.worker.engine.batching",
    "load_model": "tokenrelay.worker.engine.models",
}


def __getattr__(name: str) -> object:
    """Import what needs torch only when it is asked for (PEP 562): doubles of the engine start in milliseconds."""
    if name not in _WITH_TORCH:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_WITH_TORCH[name]), name)
