"""transformers' attention over a packed batch, with NaN and infinity contained in the request that they come from.

All requests of a step are one sequence there, separated by a mask. A mask is added to scores, and weights of 0
multiply values, so NaN and infinity pass through both, from one request to all. Flash attention's
kernels read each request by itself and need none of this. Knows the paged cache's calling convention.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers import AttentionInterface
from transformers.generation.continuous_batching.cache import PagedAttentionCache
from transformers.integrations.eager_paged import eager_paged_attention_forward
from transformers.integrations.sdpa_attention import sdpa_attention_forward

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True, slots=True)
class _ReadCache:
    """Stands in for the cache in an attention function: keys and values that were already read."""

    key: torch.Tensor
    value: torch.Tensor

    def update(self, **_: object) -> tuple[torch.Tensor, torch.Tensor]:
        return self.key, self.value


def contain_packed_attention() -> None:
    """Register these in place of transformers' own for the process; calls without a paged cache are unchanged."""
    AttentionInterface.register("sdpa", attend_packed)
    AttentionInterface.register("paged|eager", _attend_eagerly)


def attend_packed(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """`sdpa`: (1, heads, queries, width) in, (1, queries, heads, width) out."""
    return _contained(sdpa_attention_forward, module, (query, key, value), attention_mask, kwargs)


def _attend_eagerly(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """`paged|eager`: for models without another attention in transformers."""
    capped = kwargs.get("softcap") is not None
    attention = _eager_with_softcap if capped else eager_paged_attention_forward
    return _contained(attention, module, (query, key, value), attention_mask, kwargs)


def _eager_with_softcap(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gemma 2's: scores stay below the cap, which transformers' own function for a paged cache leaves out."""
    key, value = kwargs["cache"].update(key_states=key, value_states=value, layer_idx=module.layer_idx, kwargs=kwargs)
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    softcap = kwargs["softcap"]
    scores = softcap * torch.tanh(torch.matmul(query, key.transpose(2, 3)) * kwargs["scaling"] / softcap)
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


def _contained(
    attention: Callable[..., tuple[torch.Tensor, torch.Tensor | None]],
    module: torch.nn.Module,
    states: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    mask: torch.Tensor | None,
    kwargs: dict[str, Any],
) -> tuple[torch.Tensor, torch.Tensor | None]:
    query, key, value = states
    cache = kwargs.get("cache")
    if not isinstance(cache, PagedAttentionCache) or mask is None:
        return attention(module, query, key, value, mask, **kwargs)
    layer: Any = module.layer_idx
    key, value = cache.update(key_states=key, value_states=value, layer_idx=layer, kwargs=kwargs)
    bad = ~(_finite(key) & _finite(value))
    hidden = bad[:, None, :, None]
    key, value = key.masked_fill(hidden, 0.0), value.masked_fill(hidden, 0.0)
    output, weights = attention(module, query, key, value, mask, **{**kwargs, "cache": _ReadCache(key, value)})
    # A query that may read such a key becomes NaN, as without the mask: the request must fail, not continue without
    # these keys.
    allowed = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
    sick = (allowed[:, 0] & bad[:, None, :]).any(-1)  # (1, queries)
    return output.masked_fill(sick[:, :, None, None], torch.nan), weights


def _finite(states: torch.Tensor) -> torch.Tensor:
    """(1, heads, keys, width) in, (1, keys) out."""
    return states.isfinite().all(-1).all(1)
