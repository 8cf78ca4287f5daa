"""Variants within a family: rope types, windows, heads, softcaps, experts."""

from __future__ import annotations

from typing import Any, Final

from tests.families.folders import CONTEXT, WINDOW

_ROPE: Final = {"rope_theta": 1e4}
_HALF: Final = CONTEXT // 2

VARIANTS: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "llama, rope linear": ("llama", {"rope_parameters": {**_ROPE, "rope_type": "linear", "factor": 2.0}}),
    "llama, rope dynamic": ("llama", {"rope_parameters": {**_ROPE, "rope_type": "dynamic", "factor": 4.0}}),
    "llama, rope yarn": (
        "llama",
        {
            "rope_parameters": {
                **_ROPE,
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": CONTEXT // 4,
            }
        },
    ),
    "llama, rope llama3": (
        "llama",
        {
            "rope_parameters": {
                **_ROPE,
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": CONTEXT // 4,
            }
        },
    ),
    "phi3, rope longrope": (
        "phi3",
        {
            "original_max_position_embeddings": _HALF,
            "rope_parameters": {
                **_ROPE,
                "rope_type": "longrope",
                "short_factor": [1.0] * 4,
                "long_factor": [4.0] * 4,
                "original_max_position_embeddings": _HALF,
            },
        },
    ),
    "llama, one KV head": ("llama", {"num_key_value_heads": 1}),
    "llama, a KV head each": ("llama", {"num_key_value_heads": 4}),
    "llama, tied embeddings": ("llama", {"tie_word_embeddings": True}),
    "llama, biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "mistral, no window": ("mistral", {"sliding_window": None}),
    "qwen2, windows in some layers": (
        "qwen2",
        {
            "use_sliding_window": True,
            "sliding_window": WINDOW,
            "layer_types": ["full_attention", "sliding_attention"],
        },
    ),
    "gemma2, strong softcap": ("gemma2", {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 5.0}),
    "gemma2, no attention softcap": ("gemma2", {"attn_logit_softcapping": None}),
    "falcon, ALiBi": ("falcon", {"alibi": True}),
    "gpt2, learned positions, scaled by layer": ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
    "mixtral, one expert": ("mixtral", {"num_experts_per_tok": 1}),
    "bert, as an encoder": ("bert", {"is_decoder": False}),
}
"""Name to architecture and what is changed of it."""
