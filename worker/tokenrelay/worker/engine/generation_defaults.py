"""What a model's generation_config.json asks for and requests here don't get by themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

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
"""The fields that change which tokens come, and the values at which they change nothing."""


def ignored_fields(config: GenerationConfig | None) -> dict[str, Any]:
    """The fields that would change answers, with their values."""
    given = {} if config is None else config.to_dict()
    return {
        name: given[name]
        for name, neutral in sorted(_NEUTRAL.items())
        if given.get(name) is not None and given[name] not in neutral
    }
