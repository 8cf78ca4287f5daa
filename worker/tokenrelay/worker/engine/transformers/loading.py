"""Makes the default engine from a worker's settings."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from tokenrelay.worker.engine.contract import LoadedEngine
from tokenrelay.worker.engine.model_files.generation_defaults import request_defaults
from tokenrelay.worker.engine.transformers.batching import TransformersEngine
from tokenrelay.worker.engine.transformers.kv_cache import EngineSettings
from tokenrelay.worker.engine.transformers.model_errors import MANAGER_LOG
from tokenrelay.worker.engine.transformers.models import load_model

if TYPE_CHECKING:
    from tokenrelay.shared.settings import WorkerSettings


def load(model: str, settings: WorkerSettings) -> LoadedEngine:
    """See `load_engine`."""
    MANAGER_LOG.setLevel(logging.WARNING)
    loaded = load_model(
        model, device=settings.device, dtype=settings.dtype, trust_remote_code=settings.trust_remote_code
    )
    given = EngineSettings(settings.slots, settings.kv_cache_tokens, settings.max_batch_tokens)
    defaults = request_defaults(loaded.model.generation_config)
    return LoadedEngine(
        TransformersEngine(loaded, given), loaded.tokenizer, loaded.fingerprint, defaults, loaded.eos_token_ids
    )
