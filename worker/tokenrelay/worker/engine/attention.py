"""Attention on a CPU for continuous batching: each request attends to its own keys only.

transformers packs all requests of a step into one sequence and masks: 32 decoding requests compare 32 queries with the
keys of all 32. That costs batch times total context, 2.7 times the whole step at prompts of 256 tokens and 3.8 times
at 512 (docs/adr). Knows the paged cache's calling convention; nothing of sampling or of who asks.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.generation.continuous_batching.cache import PagedAttentionCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward

if TYPE_CHECKING:
    from collections.abc import Sequence

_PADDING: Final = 2
"""Decoding requests are padded to their longest as long as that makes no more than so many times their keys."""


@dataclass(frozen=True, slots=True)
class _Span:
    """Where one request's queries and keys are among those of the step."""

    query_from: int
    query_to: int
    key_from: int
    key_to: int

    @property
    def keys(self) -> int:
        return self.key_to - self.key_from


def attend_request_by_request() -> None:
    """Put this attention in the place of `sdpa` for the process; calls without a paged cache go where they did."""
    AttentionInterface.register("sdpa", _attend)


def _attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention function: (1, heads, queries, width) in, (1, queries, heads, width) out."""
    cache = kwargs.get("cache")
    biased = kwargs.get("position_bias") is not None or kwargs.get("softcap") is not None
    if not isinstance(cache, PagedAttentionCache) or attention_mask is None or biased:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    # Writes the new keys and values, gives back those of every request, and fills in whose are where.
    key, value = cache.update(key_states=key, value_states=value, layer_idx=module.layer_idx, kwargs=kwargs)
    output = query.new_empty(1, query.shape[2], query.shape[1], value.shape[3])
    spans = _spans(kwargs["cu_seq_lens_q"].tolist(), kwargs["cu_seq_lens_k"].tolist())
    decoding = [span for span in spans if span.query_to - span.query_from == 1]
    longest = max((span.keys for span in decoding), default=0)
    if len(decoding) > 1 and longest * len(decoding) <= _PADDING * sum(span.keys for span in decoding):
        rows = torch.tensor([span.query_from for span in decoding])
        output[0, rows] = _attend_together(
            query[0, :, rows], key[0], value[0], attention_mask, decoding, longest, kwargs.get("scaling")
        )
        spans = [span for span in spans if span.query_to - span.query_from > 1]
    for span in spans:
        queries, keys = slice(span.query_from, span.query_to), slice(span.key_from, span.key_to)
        output[0, queries] = _attend_one(
            query[0, :, queries],
            key[0, :, keys],
            value[0, :, keys],
            attention_mask[:, :, queries, keys],
            kwargs.get("scaling"),
        )
    return output, None


def _spans(query_ends: Sequence[int], key_ends: Sequence[int]) -> list[_Span]:
    pairs = zip(pairwise(query_ends), pairwise(key_ends), strict=True)
    return [_Span(*queries, *keys) for queries, keys in pairs if queries[0] < queries[1]]


def _attend_together(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor,
    spans: Sequence[_Span],
    longest: int,
    scaling: float | None,
) -> torch.Tensor:
    """Requests in decode, one query each, padded to the longest: one call instead of one a request, whose fixed cost
    is what short contexts pay for. query (heads, requests, width), key and value (KV heads, all keys, width). Gives
    (requests, heads, width).
    """
    heads, requests, width = query.shape
    begin = torch.tensor([span.key_from for span in spans]).unsqueeze(1)
    count = torch.tensor([span.keys for span in spans]).unsqueeze(1)
    place = torch.arange(longest).unsqueeze(0)
    padded = place >= count
    index = (begin + place).masked_fill_(padded, 0)  # what is read for the padding is masked
    keys = key[:, index].transpose(0, 1)
    values = value[:, index].transpose(0, 1)
    rows = torch.tensor([span.query_from for span in spans]).unsqueeze(1)
    allowed = mask[0, 0, rows, index]
    if allowed.dtype == torch.bool:
        allowed = allowed & ~padded
    else:
        allowed = allowed.masked_fill(padded, torch.finfo(allowed.dtype).min)
    grouped = query.transpose(0, 1).reshape(requests, key.shape[0], heads // key.shape[0], width)
    attended = scaled_dot_product_attention(grouped, keys, values, attn_mask=allowed[:, None, None, :], scale=scaling)
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
