"""The size of the KV cache: from the settings, or from the free memory.

Knows the model's shape and the machine's memory; nothing of requests.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tokenrelay.worker.engine.contract import ModelError
from tokenrelay.worker.engine.host_memory import free_host_bytes

if TYPE_CHECKING:
    from tokenrelay.worker.engine.transformers.models import LoadedModel

_OWN_SHARE = 0.25  # of the free host memory, where the settings give no size
_HOST_SHARE = 0.6  # of the free host memory, at most; the rest is for activations and other processes
_HOST_PAGE_TOKENS = 32
_DEVICE_PAGE_TOKENS = 256  # what flash attention's paged kernels take
_HOST_BATCH_TOKENS = 512  # a longer prompt is prefilled over several steps, so that others decode meanwhile


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """Resources of the engine."""

    slots: int = 16
    kv_cache_tokens: int | None = None  # None = from the free memory
    max_batch_tokens: int | None = None  # tokens of one step, prefill and decode together


@dataclass(frozen=True, slots=True)
class CacheSize:
    """The size of a KV cache, as logged at start."""

    tokens: int
    size_bytes: int
    all_slots_tokens: int  # of all slots at the model's full context

    def __str__(self) -> str:
        short = self.tokens < self.all_slots_tokens
        all_slots = f" of the {self.all_slots_tokens} that all slots would fill at full context" if short else ""
        return f"{self.tokens} tokens{all_slots}, {_mib(self.size_bytes)} MiB; TOKENRELAY_KV_CACHE_TOKENS changes it"


@dataclass(frozen=True, slots=True)
class CachePlan:
    """The manager's settings; None leaves the choice to the manager, which knows the device's memory."""

    page_tokens: int
    pages: int | None
    batch_tokens: int | None

    @property
    def tokens(self) -> int | None:
        return None if self.pages is None else self.pages * self.page_tokens


def plan_cache(loaded: LoadedModel, settings: EngineSettings, free_bytes: int | None = None) -> CachePlan:
    """Size the KV cache.

    On CUDA it takes what the manager finds free unless the settings say how much. On a host it holds every slot's full
    length, in a quarter of the free memory at most (`free_bytes`, measured when not given), or what the settings say,
    in 60 % of it at most. Raises ModelError, with the numbers, when that isn't enough.
    """
    if loaded.device.type == "cuda":
        pages = settings.kv_cache_tokens and math.ceil(settings.kv_cache_tokens / _DEVICE_PAGE_TOKENS)
        return CachePlan(_DEVICE_PAGE_TOKENS, pages, settings.max_batch_tokens)
    batch_tokens = max(settings.max_batch_tokens or _HOST_BATCH_TOKENS, settings.slots)
    free = free_host_bytes() if free_bytes is None else free_bytes
    per_token = bytes_per_token(loaded, batch_tokens)
    usable = int(free * (_HOST_SHARE if settings.kv_cache_tokens else _OWN_SHARE))
    wanted = settings.kv_cache_tokens or settings.slots * loaded.context_tokens
    # The manager keeps two pages of its own for padding.
    holds = max(usable // per_token - 2 * _HOST_PAGE_TOKENS, 0)
    required = wanted if settings.kv_cache_tokens else _HOST_PAGE_TOKENS
    if holds < required:
        raise ModelError(
            f"not enough memory for the KV cache: {required} tokens need {_mib(required * per_token)} MiB at "
            f"{per_token} bytes a token, and of {_mib(free)} MiB free {_mib(usable)} MiB may be used: "
            "lower kv_cache_tokens or max_batch_tokens, or take a smaller model"
        )
    pages = math.ceil(min(wanted, holds) / _HOST_PAGE_TOKENS)
    return CachePlan(_HOST_PAGE_TOKENS, pages, batch_tokens)


def bytes_per_token(loaded: LoadedModel, batch_tokens: int) -> int:
    """Memory of one cached token on a host: keys and values of every layer, its column in the attention masks that
    sdpa needs, one a kind of layer, and its copy while a layer attends."""
    config = loaded.model.config.get_text_config()
    heads: int = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_width: int = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    cached = 2 * heads * head_width * config.num_hidden_layers
    attending = 2 * config.num_attention_heads * head_width
    masks = batch_tokens * len(set(getattr(config, "layer_types", None) or [""]))
    return int((cached + masks + attending) * loaded.dtype.itemsize)


def _mib(size: int) -> int:
    return size // (1 << 20)
