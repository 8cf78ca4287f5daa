"""How large the KV cache gets: from the settings, or from the memory that is free.

Knows the model's shape and the machine's memory; nothing of requests.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tokenrelay.worker.engine.contract import ModelError

if TYPE_CHECKING:
    from tokenrelay.worker.engine.models import LoadedModel

_HOST_SHARE = 0.6  # of the free host memory; the rest is for activations and for everybody else
_HOST_PAGE_TOKENS = 32
_DEVICE_PAGE_TOKENS = 256  # what flash attention's paged kernels take
_USUAL_REQUEST_TOKENS = 4096  # what each slot gets of a model whose context is longer
_HOST_BATCH_TOKENS = 512  # a longer prompt is prefilled over several steps, so that its neighbours go on


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """What an engine is given of the machine."""

    slots: int = 16
    kv_cache_tokens: int | None = None  # None = from the free memory
    max_batch_tokens: int | None = None  # tokens of one step, prefill and decode together


@dataclass(frozen=True, slots=True)
class CacheUse:
    """How full a KV cache is: the tokens for which it has room, and the share of its pages that requests have."""

    capacity_tokens: int
    used_ratio: float


@dataclass(frozen=True, slots=True)
class CachePlan:
    """The manager's numbers; None leaves the choice to the manager, which knows the device's memory."""

    page_tokens: int
    pages: int | None
    batch_tokens: int | None

    @property
    def tokens(self) -> int | None:
        return None if self.pages is None else self.pages * self.page_tokens


def plan_cache(loaded: LoadedModel, settings: EngineSettings, free_bytes: int | None = None) -> CachePlan:
    """Size the KV cache.

    On CUDA it takes what the manager finds free unless the settings say how much. On a host, every slot's
    full length (4096 tokens each where that is more, and one full length at least), or what 60 % of the free memory
    holds (`free_bytes`, measured when not given).
    Raises ModelError, with the numbers, when that isn't enough.
    """
    if loaded.device.type == "cuda":
        pages = settings.kv_cache_tokens and math.ceil(settings.kv_cache_tokens / _DEVICE_PAGE_TOKENS)
        return CachePlan(_DEVICE_PAGE_TOKENS, pages, settings.max_batch_tokens)
    batch_tokens = max(settings.max_batch_tokens or _HOST_BATCH_TOKENS, settings.slots)
    free = free_host_bytes() if free_bytes is None else free_bytes
    per_token = bytes_per_token(loaded, batch_tokens)
    usable = int(free * _HOST_SHARE)
    context = loaded.context_tokens
    wanted = settings.kv_cache_tokens or max(settings.slots * min(context, _USUAL_REQUEST_TOKENS), context)
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
    """What one cached token costs on a host: keys and values of every layer, its column in the attention mask that
    sdpa needs, and its copy while a layer attends."""
    config = loaded.model.config.get_text_config()
    heads: int = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_width: int = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    cached = 2 * heads * head_width * config.num_hidden_layers
    attending = 2 * config.num_attention_heads * head_width
    return int((cached + batch_tokens + attending) * loaded.dtype.itemsize)


def free_host_bytes() -> int:
    """Memory that this process may still take: the machine's, or its container's where that is less."""
    free = _free_machine_bytes()
    group = Path("/sys/fs/cgroup")
    try:
        limit = (group / "memory.max").read_text().strip()
        used = int((group / "memory.current").read_text())
        statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        used -= int(statistics.get("inactive_file", 0))  # the weights' file pages: given back when memory is needed
    except (OSError, ValueError):
        return free
    return free if limit == "max" else min(free, max(int(limit) - used, 0))


def _free_machine_bytes() -> int:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        # No Linux: half of what there is.
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    sizes = {name: size for name, _, size in (line.partition(":") for line in lines)}
    return int(sizes["MemAvailable"].split()[0]) * 1024


def _mib(size: int) -> int:
    return size // (1 << 20)
