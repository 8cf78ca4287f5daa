"""Fields of other servers' native APIs that their clients may send here: llama.cpp, Ollama, TGI, Hugging Face,
text-generation-webui, SGLang, Anthropic.

Aliases of our options are fields of the bodies (request_bodies.py). Here are the rest, as in unsupported.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tokenrelay.gateway.openai.bodies.no_op_values import at_most, equal, is_empty, is_null, off

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tokenrelay.gateway.openai.bodies.no_op_values import IsNoOp

UNSUPPORTED: Final[Mapping[str, IsNoOp]] = {
    # penalties
    "diversity_penalty": equal(0),
    "dry_multiplier": equal(0),
    "encoder_repetition_penalty": equal(1),
    "exponential_decay_length_penalty": is_empty,
    "no_repeat_ngram_size": equal(0),
    "encoder_no_repeat_ngram_size": equal(0),
    "rep_pen": equal(1),
    "repeat_penalty": equal(1),
    "sequence_bias": is_empty,
    # sampling
    "dynamic_temperature": off,
    "dynatemp_range": equal(0),
    "epsilon_cutoff": equal(0),
    "eta_cutoff": equal(0),
    "guidance_scale": equal(1),
    "min_keep": equal(0, 1),
    "mirostat": equal(0),
    "mirostat_mode": equal(0),
    "penalty_alpha": equal(0),
    "sampler_order": is_empty,
    "sampler_priority": is_empty,
    "samplers": is_empty,
    "skew": equal(0),
    "smoothing_factor": equal(0),
    "temperature_last": off,
    "tfs": equal(1),
    "tfs_z": equal(1),
    "top_a": equal(0),
    "top_n_sigma": at_most(0),
    "typ_p": equal(1),
    "typical": equal(1),
    "typical_p": equal(1),
    "watermark": off,
    "xtc_probability": equal(0),
    # beams
    "num_beam_groups": equal(1),
    "num_beams": equal(1),
    "num_return_sequences": equal(1),
    "n_cmpl": equal(1),
    # token constraints
    "bad_words_ids": is_empty,
    "ban_eos_token": off,
    "banned_strings": is_empty,
    "banned_tokens": is_empty,
    "begin_suppress_tokens": is_empty,
    "custom_logit_processor": is_empty,
    "custom_token_bans": is_empty,
    "ebnf": is_empty,
    "force_words_ids": is_empty,
    "forced_bos_token_id": is_null,
    "forced_eos_token_id": is_null,
    "format": is_empty,
    "grammar_string": is_empty,
    "suppress_tokens": is_empty,
    # length and stop
    "eos_token_id": is_null,
    "max_length": is_null,
    "max_time": is_null,
    "min_length": equal(0),
    "min_new_tokens": equal(0),
    "n_indent": equal(0),
    "no_stop_trim": off,
    "stop_regex": is_empty,
    "t_max_predict_ms": at_most(0),
    # inputs
    "adapter_id": is_empty,
    "context": is_empty,
    "image_data": is_empty,
    "images": is_empty,
    "input_ids": is_empty,
    "lora": is_empty,
    "lora_path": is_empty,
    "negative_prompt": is_empty,
    "previous_response": is_empty,
    "system": is_empty,
    "template": is_empty,
    "token_healing": off,
    "truncate": is_null,
    # extra output
    "decoder_input_details": off,
    "details": off,
    "logprob_token_ids": is_empty,
    "n_probs": equal(0),
    "return_full_text": off,
    "return_hidden_states": off,
    "return_logprob": off,
    "return_tokens": off,
    "top_n_tokens": equal(0),
}
"""As unsupported.UNSUPPORTED."""

CONTAINERS: Final = ("extra_body", "generation_config", "options", "parameters", "sampling_params")
"""Objects that hold options; here options are top-level fields."""

HINTS: Final = frozenset(
    {
        # parameters of unsupported features: penalties, mirostat, dynamic temperature, beams
        "dry_allowed_length",
        "dry_base",
        "dry_penalty_last_n",
        "dry_sequence_breakers",
        "dynatemp_exponent",
        "dynatemp_high",
        "dynatemp_low",
        "early_stopping",
        "length_penalty",
        "mirostat_eta",
        "mirostat_tau",
        "penalize_newline",
        "penalize_nl",
        "repeat_last_n",
        "repetition_penalty_range",
        "smoothing_curve",
        "xtc_threshold",
        # runtime options
        "cache_prompt",
        "ec_transfer_params",
        "id_slot",
        "keep_alive",
        "n_cache_reuse",
        "n_discard",
        "n_keep",
        "num_batch",
        "num_ctx",
        "num_gpu",
        "low_vram",
        "main_gpu",
        "num_gqa",
        "num_keep",
        "num_thread",
        "numa",
        "pad_token_id",
        "prompt_lookup_num_tokens",
        "use_cache",
        "use_gpu",
        "use_mlock",
        "use_mmap",
        "vocab_only",
        "wait_for_model",
        # extra output
        "reasoning_format",
        "response_fields",
        "return_mm_kwargs",
        "return_progress",
        "return_token_offsets",
        "routed_experts_prompt_start",
        "separate_reasoning",
        "stream_reasoning",
        "timings_per_token",
        # reasoning
        "think",
        "thinking",
    }
)
"""As unsupported.HINTS."""
