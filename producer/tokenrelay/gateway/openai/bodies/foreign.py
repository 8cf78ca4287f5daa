"""Fields of other servers' own APIs, as their users go on sending them: llama.cpp's, Ollama's, TGI's, Hugging Face's,
text-generation-webui's, SGLang's, Anthropic's.

Those that mean an option of ours are fields of the bodies (requests.py). These would change the answer, or don't.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tokenrelay.gateway.openai.bodies.harmless import absent, at_most, equal, is_nothing, off

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tokenrelay.gateway.openai.bodies.harmless import Harmless

UNDONE: Final[Mapping[str, Harmless]] = {
    # penalties
    "diversity_penalty": equal(0),
    "dry_multiplier": equal(0),
    "encoder_repetition_penalty": equal(1),
    "exponential_decay_length_penalty": is_nothing,
    "no_repeat_ngram_size": equal(0),
    "encoder_no_repeat_ngram_size": equal(0),
    "rep_pen": equal(1),
    "repeat_penalty": equal(1),
    "sequence_bias": is_nothing,
    # which tokens are drawn from, and how
    "dynamic_temperature": off,
    "dynatemp_range": equal(0),
    "epsilon_cutoff": equal(0),
    "eta_cutoff": equal(0),
    "guidance_scale": equal(1),
    "min_keep": equal(0, 1),
    "mirostat": equal(0),
    "mirostat_mode": equal(0),
    "penalty_alpha": equal(0),
    "sampler_order": is_nothing,
    "sampler_priority": is_nothing,
    "samplers": is_nothing,
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
    # which tokens may or must come
    "bad_words_ids": is_nothing,
    "ban_eos_token": off,
    "banned_strings": is_nothing,
    "banned_tokens": is_nothing,
    "begin_suppress_tokens": is_nothing,
    "custom_logit_processor": is_nothing,
    "custom_token_bans": is_nothing,
    "ebnf": is_nothing,
    "force_words_ids": is_nothing,
    "forced_bos_token_id": absent,
    "forced_eos_token_id": absent,
    "format": is_nothing,
    "grammar_string": is_nothing,
    "suppress_tokens": is_nothing,
    # where the answer ends
    "eos_token_id": absent,
    "max_length": absent,
    "max_time": absent,
    "min_length": equal(0),
    "min_new_tokens": equal(0),
    "n_indent": equal(0),
    "no_stop_trim": off,
    "stop_regex": is_nothing,
    "t_max_predict_ms": at_most(0),
    # what is asked
    "adapter_id": is_nothing,
    "context": is_nothing,
    "image_data": is_nothing,
    "images": is_nothing,
    "input_ids": is_nothing,
    "lora": is_nothing,
    "lora_path": is_nothing,
    "negative_prompt": is_nothing,
    "previous_response": is_nothing,
    "system": is_nothing,
    "template": is_nothing,
    "token_healing": off,
    "truncate": absent,
    # what is told of it
    "decoder_input_details": off,
    "details": off,
    "logprob_token_ids": is_nothing,
    "n_probs": equal(0),
    "return_full_text": off,
    "return_hidden_states": off,
    "return_logprob": off,
    "return_tokens": off,
    "top_n_tokens": equal(0),
}
"""As fields.UNDONE."""

CONTAINERS: Final = ("extra_body", "generation_config", "options", "parameters", "sampling_params")
"""Objects that hold options. Here each option stands beside `model`."""

HINTS: Final = frozenset(
    {
        # of what isn't done: penalties, mirostat, dynamic temperature, beams
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
        # how it is run
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
        # what is told of it
        "reasoning_format",
        "response_fields",
        "return_mm_kwargs",
        "return_progress",
        "return_token_offsets",
        "routed_experts_prompt_start",
        "separate_reasoning",
        "stream_reasoning",
        "timings_per_token",
        # how models that reason should answer
        "think",
        "thinking",
    }
)
"""As fields.HINTS."""
