"""Tiny random model folders: any causal architecture of transformers, small enough to be made and served in a second.

A configuration is derived from the architecture's own default by making every size in it small; what can't be derived
so stands in `OVERRIDES`. Random weights are as good as trained ones to tell right arithmetic from wrong.
"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any, Final

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from tokenrelay.worker.models import weather_model_path

if TYPE_CHECKING:
    from pathlib import Path

VOCABULARY: Final = 1280
"""As many as the bundled tokenizer has, and some more, as most models have."""
CONTEXT: Final = 256
WINDOW: Final = 16

_HIDDEN: Final = 32
_HEADS: Final = 4
_SIZES: Final[dict[str, Any]] = {
    "vocab_size": VOCABULARY,
    "hidden_size": _HIDDEN,
    "d_model": _HIDDEN,
    "n_embd": _HIDDEN,
    "emb_dim": _HIDDEN,
    "embedding_size": _HIDDEN,
    "embedding_dim": _HIDDEN,
    "word_embed_proj_dim": _HIDDEN,
    "intermediate_size": 48,
    "ffn_dim": 48,
    "ffn_hidden_size": 48,
    "expert_ffn_hidden_size": 48,
    "n_inner": 48,
    "d_inner": 48,
    "dff": 48,
    "dim_ff": 48,
    "feed_forward_size": 48,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 24,
    "shared_intermediate_size": 24,
    "moe_shared_expert_intermediate_size": 24,
    "intermediate_size_mlp": 48,
    "dense_intermediate_size": 48,
    "num_hidden_layers": 2,
    "n_layer": 2,
    "n_layers": 2,
    "num_layers": 2,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "num_encoder_layers": 1,
    "num_decoder_layers": 2,
    "num_attention_heads": _HEADS,
    "n_head": _HEADS,
    "n_heads": _HEADS,
    "num_heads": _HEADS,
    "attention_heads": _HEADS,
    "encoder_attention_heads": _HEADS,
    "decoder_attention_heads": _HEADS,
    "num_encoder_attention_heads": _HEADS,
    "num_decoder_attention_heads": _HEADS,
    "num_key_value_heads": 2,
    "num_kv_heads": 2,
    "head_dim": _HIDDEN // _HEADS,
    "d_head": _HIDDEN // _HEADS,
    "dim_head": _HIDDEN // _HEADS,
    "attention_head_size": _HIDDEN // _HEADS,
    "max_position_embeddings": CONTEXT,
    "n_positions": CONTEXT,
    "n_ctx": CONTEXT,
    "max_seq_len": CONTEXT,
    "context_length": CONTEXT,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "moe_num_experts": 4,
    "num_experts_per_tok": 2,
    "num_experts_per_token": 2,
    "moe_topk": 2,
    "moe_k": 2,
    "n_group": 1,
    "topk_group": 1,
    "num_expert_group": 1,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "qk_head_dim": 16,
    "index_head_dim": 16,
    "index_n_heads": 2,
    "index_topk": 8,
    "sliding_window": WINDOW,
    "attention_window_size": WINDOW,
    "local_attention": WINDOW,
    "window_size": WINDOW,
    "attention_chunk_size": 32,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "mamba_d_state": 8,
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_n_groups": 1,
    "mamba_chunk_size": 16,
    "mamba_expand": 2,
    "state_size": 8,
    "time_step_rank": 4,
    "mamba_dt_rank": 4,
    "chunk_size": 16,
    "rotary_dim": 4,
    "initializer_range": 0.2,
    "init_std": 0.2,
    "init_method_std": 0.2,
    "vocab_size_per_layer_input": VOCABULARY,
    "hidden_size_per_layer_input": 8,
    "query_pre_attn_scalar": 8,
    "lru_width": _HIDDEN,
    "type_vocab_size": 2,
    "image_size": 32,
    "patch_size": 16,
}
_TOKENS: Final = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
_PER_LAYER: Final = ("layer_types", "mlp_layer_types", "layers_block_type", "indexer_types", "block_types")

OVERRIDES: Final[dict[str, dict[str, Any]]] = {
    # Encoders, as what the mapping takes them for.
    **{
        name: {"is_decoder": True}
        for name in (
            "bert bert-generation big_bird camembert data2vec-text electra ernie megatron-bert rembert roberta "
            "roberta-prelayernorm roc_bert roformer xlm-roberta xlm-roberta-xl xmod"
        ).split()
    },
    "cohere_compass_text": {"layer_types": ["full_attention", "full_attention"]},
    "dots1": {"moe_intermediate_size": 24, "n_routed_experts": 4},
    "hunyuan_v1_dense": {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
    "hunyuan_v1_moe": {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
    "ministral": {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "nemotron": {"num_key_value_heads": 2, "head_dim": 8},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "num_layers": 2},
    "reformer": {"is_decoder": True},
    "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 1},
    "gemma3n_text": {"num_kv_shared_layers": 0, "activation_sparsity_pattern": [0.0, 0.0]},
    "zaya": {"num_experts_per_tok": 1},
    "dots3_note_text": {"num_key_value_heads": 4},
    "falcon_h1": {"mamba_d_ssm": 64, "mamba_n_heads": 8, "mamba_d_head": 8},
    "xmod": {"default_language": "en_XX", "languages": ["en_XX"]},
}
"""What an architecture needs beside the derived sizes."""


def tiny_config(model_type: str, **changes: Any) -> PreTrainedConfig:
    """The architecture's configuration with every size small. Raises what its own class raises."""
    kind = CONFIG_MAPPING[model_type]
    fields = _shrunk(kind(), {**OVERRIDES.get(model_type, {}), **changes})
    config: PreTrainedConfig = kind(**fields)
    return config


def _shrunk(default: PreTrainedConfig, changes: dict[str, Any]) -> dict[str, Any]:
    """The fields of a configuration that are to be small; those of its parts likewise."""
    given = default.to_dict()
    fields: dict[str, Any] = {name: size for name, size in _SIZES.items() if given.get(name) is not None}
    fields.update({name: token_id for name, token_id in _TOKENS.items() if name in given})
    for name in _PER_LAYER:
        if isinstance(given.get(name), list):
            kinds = list(dict.fromkeys(given[name]))
            layers = max(2, len(kinds))
            fields[name] = [kinds[index % len(kinds)] for index in range(layers)]
            for count in ("num_hidden_layers", "n_layer", "num_layers"):
                if count in fields:
                    fields[count] = layers
    for name, part in vars(default).items():
        if isinstance(part, PreTrainedConfig):
            fields[name] = {**part.to_dict(), **_shrunk(part, changes.get(name, {}))}
    fields.update(changes)
    return fields


def tiny_model(config: PreTrainedConfig, seed: int = 0) -> PreTrainedModel:
    """A model with random weights, none of them a neutral 0 or 1."""
    torch.manual_seed(seed)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float32)
            parameter.add_((0.05 * noise).to(parameter.dtype))
    return model


def write_folder(folder: Path, config: PreTrainedConfig, seed: int = 0) -> Path:
    """A model folder with the bundled model's tokenizer."""
    model = tiny_model(config, seed)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = None
    model.save_pretrained(folder)
    for path in weather_model_path().glob("tokenizer*"):
        shutil.copy(path, folder)
    return folder
