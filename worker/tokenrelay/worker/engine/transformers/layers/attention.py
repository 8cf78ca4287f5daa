"""Attention on a CPU for continuous batching: each request attends to its own keys only.

transformers packs all requests of a step into one sequence and masks: 32 decoding requests compare 32 queries with the
keys of all 32. That costs batch times total context, 2.7 times the whole step at prompts of 256 tokens and 3.8 times
at 512 (docs/adr). Knows the paged cache's calling convention; nothing of sampling.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakKeyDictionary

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.generation.continuous_batching.cache import PagedAttentionCache
from transformers.generation.continuous_batching.cache_allocators import FullAttentionCacheAllocator

from tokenrelay.worker.engine.transformers.layers.packed_attention import attend_packed, contain_packed_attention

if TYPE_CHECKING:
    from collections.abc import Sequence

_PADDING: Final = 2
"""Decoding requests are padded to their longest as long as that makes no more than so many times their keys."""


@dataclass(frozen=True, slots=True)
class _SingleRequest:
    """A request that attends by itself: where its queries are in the step, and its keys among those that are read."""

    queries: slice
    keys: slice
    mask: torch.Tensor
    """(1, 1, queries, keys)"""


@dataclass(frozen=True, slots=True)
class _DecodeBatch:
    """Requests in decode, one query each, padded to the longest: one call instead of one a request, whose fixed cost is
    what short contexts pay for."""

    rows: torch.Tensor
    """(requests,): whose query is where in the step."""
    longest: int
    mask: torch.Tensor
    """(requests, 1, 1, longest)"""
    index: torch.Tensor | None
    """(requests * longest,): their keys among those that are read; None where these are the first ones, as they are."""


@dataclass(frozen=True, slots=True)
class _Plan:
    """How the requests of a step attend: computed once, used by all layers that share their keys."""

    alone: list[_SingleRequest]
    together: _DecodeBatch | None
    read_index: torch.Tensor | None
    """What the cache reads instead: the padded keys of those that attend together, then the others'."""


@dataclass(slots=True)
class _LatestPlans:
    """The plans of one engine's latest step, by the part of the cache. `queries` identifies the step: each has its own
    tensor."""

    queries: torch.Tensor
    by_allocator: dict[int, _Plan]


_latest: WeakKeyDictionary[PagedAttentionCache, _LatestPlans] = WeakKeyDictionary()


def attend_request_by_request() -> None:
    """Register this attention as `sdpa` for the process; calls without a paged cache go to transformers' own."""
    contain_packed_attention()
    AttentionInterface.register("sdpa", _attend)


def _attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """transformers' attention function: (1, heads, queries, width) in, (1, queries, heads, width) out."""
    cache = kwargs.get("cache")
    biased = kwargs.get("position_bias") is not None or kwargs.get("softcap") is not None
    if not isinstance(cache, PagedAttentionCache) or attention_mask is None or biased:
        return attend_packed(module, query, key, value, attention_mask, **kwargs)
    layer: Any = module.layer_idx
    plan = _plan_of(cache, layer, attention_mask, kwargs)
    if plan.read_index is not None:
        number = cache.layer_to_allocator[layer].index
        indices = kwargs["read_index"]
        kwargs["read_index"] = [*indices[:number], plan.read_index, *indices[number + 1 :]]
    # Writes the new keys and values, and gives back those of every request.
    key, value = cache.update(key_states=key, value_states=value, layer_idx=layer, kwargs=kwargs)
    output = query.new_empty(query.shape[2], query.shape[1], value.shape[3])
    scaling = kwargs.get("scaling")
    if plan.together is not None:
        output[plan.together.rows] = _attend_together(query[0], key[0], value[0], plan.together, scaling)
    for one in plan.alone:
        queries, keys, values = query[0, :, one.queries], key[0, :, one.keys], value[0, :, one.keys]
        output[one.queries] = _attend_one(queries, keys, values, one.mask, scaling)
    return output.unsqueeze(0), None


def _plan_of(cache: PagedAttentionCache, layer: int, mask: torch.Tensor, kwargs: dict[str, Any]) -> _Plan:
    queries: torch.Tensor = kwargs["cu_seq_lens_q"]
    allocator = cache.layer_to_allocator[layer]
    plans = _latest.get(cache)
    if plans is None or plans.queries is not queries:
        plans = _latest[cache] = _LatestPlans(queries, {})
    if allocator.index not in plans.by_allocator:
        key_ends = kwargs["cu_seq_lens_k"][allocator.layer_type].tolist()
        read_index = kwargs["read_index"][allocator.index]
        # A sliding window is read before it is written; what is written then fills the places that are marked for it.
        chosen = type(allocator) is FullAttentionCacheAllocator and read_index.numel() > 0
        plans.by_allocator[allocator.index] = _plan(queries.tolist(), key_ends, mask, read_index if chosen else None)
    return plans.by_allocator[allocator.index]


def _plan(
    query_ends: Sequence[int], key_ends: Sequence[int], mask: torch.Tensor, read_index: torch.Tensor | None
) -> _Plan:
    """query_ends, key_ends: (requests + 1,), where each request's begin and the last one's end. mask: (1, 1, queries,
    keys). read_index: (keys,), where given the step may choose what is read."""
    spans = [
        (slice(*queries), slice(*keys))
        for queries, keys in zip(pairwise(query_ends), pairwise(key_ends), strict=True)
        if queries[0] < queries[1]
    ]
    decoding = [(queries, keys) for queries, keys in spans if queries.stop - queries.start == 1]
    longest = max((_length(keys) for _, keys in decoding), default=0)
    padded = longest * len(decoding)
    if len(decoding) < 2 or padded > _PADDING * sum(_length(keys) for _, keys in decoding):
        return _Plan([_SingleRequest(queries, keys, mask[:, :, queries, keys]) for queries, keys in spans], None, None)
    rows = torch.tensor([queries.start for queries, _ in decoding])
    begins = torch.tensor([keys.start for _, keys in decoding]).unsqueeze(1)
    counts = torch.tensor([_length(keys) for _, keys in decoding]).unsqueeze(1)
    place = torch.arange(longest).unsqueeze(0)
    padding = place >= counts
    # Padding is masked, but a mask is added to the scores and weights of 0 multiply the values, so that NaN gets
    # through both: a request's padding reads its own last key again, never another request's.
    index = begins + place.minimum(counts - 1)
    allowed = mask[0, 0, rows.unsqueeze(1), index]
    if allowed.dtype == torch.bool:
        allowed = allowed & ~padding
    else:
        allowed = allowed.masked_fill(padding, torch.finfo(allowed.dtype).min)
    together = _DecodeBatch(rows, longest, allowed[:, None, None, :], index.flatten() if read_index is None else None)
    alone, parts, at = [], [index.flatten()], padded
    for queries, keys in spans:
        if queries.stop - queries.start > 1:
            parts.append(torch.arange(keys.start, keys.stop))
            read = keys if read_index is None else slice(at, at + _length(keys))
            alone.append(_SingleRequest(queries, read, mask[:, :, queries, keys]))
            at += _length(keys)
    return _Plan(alone, together, None if read_index is None else read_index[torch.cat(parts)])


def _length(part: slice) -> int:
    return int(part.stop - part.start)


def _attend_together(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, together: _DecodeBatch, scaling: float | None
) -> torch.Tensor:
    """query (heads, queries, width), key and value (KV heads, keys, width). Gives (requests, heads, width)."""
    heads, _, width = query.shape
    requests = len(together.rows)
    if together.index is None:
        padded = slice(0, requests * together.longest)
        key, value = key[:, padded], value[:, padded]
    else:
        key, value = key.index_select(1, together.index), value.index_select(1, together.index)
    # (requests, KV heads, longest, width)
    keys, values = (
        part.view(part.shape[0], requests, together.longest, part.shape[2]).transpose(0, 1) for part in (key, value)
    )
    grouped = query[:, together.rows].transpose(0, 1).reshape(requests, key.shape[0], heads // key.shape[0], width)
    attended = scaled_dot_product_attention(grouped, keys, values, attn_mask=together.mask, scale=scaling)
    return attended.reshape(requests, heads, value.shape[2])


def _attend_one(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor, scaling: float | None
) -> torch.Tensor:
    """One request: query (heads, queries, width), key and value (KV heads, keys, width). Gives (queries, heads, width).

    The query heads of a KV head attend together instead of each to its own copy of the keys; in decode, with one
    query each, as the rows of one matrix product.
    """
    heads, queries, width = query.shape
    grouped = query.reshape(key.shape[0], heads // key.shape[0], queries, width)
    keys, values = key.unsqueeze(1), value.unsqueeze(1)
    if queries == 1:
        grouped = grouped.transpose(1, 2)
    else:
        keys = keys.expand(-1, grouped.shape[1], -1, -1)
        values = values.expand(-1, grouped.shape[1], -1, -1)
    attended = scaled_dot_product_attention(grouped, keys, values, attn_mask=mask, scale=scaling)
    return attended.reshape(heads, queries, value.shape[2]).transpose(0, 1)
