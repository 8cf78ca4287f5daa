"""A model's generation_config.json: its sampling defaults, and the fields that aren't supported."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from tokenrelay.shared.options import sampling_defaults

if TYPE_CHECKING:
    from transformers import GenerationConfig

_NEUTRAL: Final[dict[str, tuple[Any, ...]]] = {
    "temperature": (1.0,),
    "top_k": (0,),
    "top_p": (1.0,),
    "min_p": (0.0,),
    "typical_p": (1.0,),
    "repetition_penalty": (1.0,),
    "encoder_repetition_penalty": (1.0,),
    "length_penalty": (1.0,),
    "no_repeat_ngram_size": (0,),
    "num_beams": (1,),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "guidance_scale": (1.0,),
    "suppress_tokens": ([],),
    "begin_suppress_tokens": ([],),
    "bad_words_ids": ([],),
    "stop_strings": ([], ""),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "exponential_decay_length_penalty": (),
    "sequence_bias": ([], {}),
    "epsilon_cutoff": (0.0,),
    "eta_cutoff": (0.0,),
}
"""The fields that affect the tokens, and the values at which they have no effect."""


def request_defaults(config: GenerationConfig | None) -> dict[str, Any]:
    """The model's defaults for options that a request omits, by the names of our options.

    As in vLLM, `do_sample` is ignored. A value out of bounds is dropped.
    """
    return sampling_defaults(_given(config))


def ignored_fields(config: GenerationConfig | None) -> dict[str, Any]:
    """The fields that would affect the tokens and aren't supported, with their values."""
    applied = request_defaults(config)
    return {name: value for name, value in _given(config).items() if name not in applied}


def _given(config: GenerationConfig | None) -> dict[str, Any]:
    fields = {} if config is None else config.to_dict()
    return {
        name: fields[name]
        for name, neutral in sorted(_NEUTRAL.items())
        if fields.get(name) is not None and fields[name] not in neutral
    }
